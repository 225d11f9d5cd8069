//! A case of the kit, and what came of it.

use std::fmt;
use std::time::Duration;

/// What a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Keys, values, ranges, batches and conditions, one call after the other.
    Core,
    /// Many calls at once, and calls that are given up.
    Concurrency,
    /// Close, drop, and what is there afterwards.
    Reopen,
    /// The largest and the smallest of everything.
    Limits,
    /// A process that is killed, see [`super::crash`].
    Crash,
}

impl Group {
    /// The name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Concurrency => "concurrency",
            Self::Reopen => "reopen",
            Self::Limits => "limits",
            Self::Crash => "crash",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One check of the kit. Only the kit makes them: [`super::CASES`] and [`super::crash::CASES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Case {
    /// The name, like no other.
    pub name: &'static str,
    /// What it is about.
    pub group: Group,
    /// What a backend owes, in one sentence.
    pub obligation: &'static str,
}

/// What came of a case.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The case.
    pub case: &'static Case,
    /// How many operations were done on the storage.
    pub operations: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether the obligation was kept.
    pub result: Result<(), Failure>,
}

/// A case that failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The case, which says the obligation that is broken.
    pub case: &'static Case,
    /// What was expected, and what was seen instead.
    pub broken: String,
    /// The last operations before, oldest first.
    pub operations: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { name, group, obligation } = self.case;
        write!(f, "{name} ({group})\n  obligation: {obligation}\n  broken: {}\n  after:", self.broken)?;
        if self.operations.is_empty() {
            return f.write_str(" no operation");
        }
        self.operations.iter().try_for_each(|operation| write!(f, "\n    {operation}"))
    }
}

/// Ends a test whose cases failed.
///
/// # Panics
/// If one failed; the message holds all failures.
pub(super) fn expect_all(outcomes: &[Outcome]) {
    let failures: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| outcome.result.as_ref().err().map(ToString::to_string))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} obligations are broken:\n{}",
        failures.len(),
        outcomes.len(),
        failures.join("\n")
    );
}
