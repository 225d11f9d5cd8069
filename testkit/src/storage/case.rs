//! The cases of the suite and their outcomes.

use std::fmt;
use std::time::Duration;

/// The subject of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Keys, values, ranges, batches and conditions in sequential calls.
    Core,
    /// Concurrent and cancelled calls.
    Concurrency,
    /// Close and drop, and the data afterwards.
    Reopen,
    /// Minimum and maximum sizes.
    Limits,
    /// Killed processes, see [`super::crash`].
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

/// A case of the suite: an element of [`super::CASES`] or [`super::crash::CASES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Case {
    /// The unique name.
    pub name: &'static str,
    /// The subject.
    pub group: Group,
    /// The requirement for a backend, in one sentence.
    pub requirement: &'static str,
}

/// The outcome of a case.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The case.
    pub case: &'static Case,
    /// The number of operations on the storage.
    pub operations: u64,
    /// The duration.
    pub took: Duration,
    /// The violation, if any.
    pub result: Result<(), Failure>,
}

/// A failed case.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The case.
    pub case: &'static Case,
    /// The expected and the observed behaviour.
    pub violation: String,
    /// The last operations before the failure, oldest first.
    pub operations: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { name, group, requirement } = self.case;
        write!(
            f,
            "{name} ({group})\n  requirement: {requirement}\n  violation: {}\n  after:",
            self.violation
        )?;
        if self.operations.is_empty() {
            return f.write_str(" no operation");
        }
        self.operations.iter().try_for_each(|operation| write!(f, "\n    {operation}"))
    }
}

/// Fails a test if a case failed.
///
/// # Panics
/// If a case failed. The message contains all failures.
pub(super) fn expect_all(outcomes: &[Outcome]) {
    let failures: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| outcome.result.as_ref().err().map(ToString::to_string))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} requirements are violated:\n{}",
        failures.len(),
        outcomes.len(),
        failures.join("\n")
    );
}
