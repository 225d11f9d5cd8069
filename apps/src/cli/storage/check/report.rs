//! What `enjambre storage check` says: a line for each case, a summary, or all of it as JSON.

use enjambre_core::storage::Role;
use enjambre_core::storage::conformance::{Case, KIT_VERSION, Outcome};
use serde::Serialize;

use crate::cli::output::plain;
use crate::failure::Failure;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    kit: u32,
    backend: String,
    passed: usize,
    failed: usize,
    milliseconds: u64,
    cases: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    group: &'static str,
    role: &'static str,
    obligation: &'static str,
    outcome: &'static str,
    /// How many there were.
    operations: u64,
    milliseconds: u64,
    #[serde(flatten)]
    failure: Option<Broken>,
}

#[derive(Debug, Serialize)]
struct Broken {
    broken: String,
    /// The last operations, oldest first.
    after: Vec<String>,
}

pub(super) const fn name_of(role: Role) -> &'static str {
    match role {
        Role::Records => "records",
        Role::Content => "content",
    }
}

impl Report {
    pub(super) fn new(backend: &str) -> Self {
        let (kit, backend) = (KIT_VERSION, backend.to_owned());
        Self { kit, backend, passed: 0, failed: 0, milliseconds: 0, cases: Vec::new() }
    }

    pub(super) fn title(&self, cases: usize) -> String {
        let Self { backend, kit, .. } = self;
        format!("storage {backend}, conformance kit {kit}, cases for records and for content: {cases}")
    }

    /// Adds what came of a case and says it in a line, or more where it failed.
    pub(super) fn add(&mut self, role: Role, outcome: &Outcome) -> String {
        let Case { name, group, obligation, .. } = *outcome.case;
        let milliseconds = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        let failure = outcome.result.as_ref().err();
        let said = if failure.is_some() { "FAILED" } else { "ok" };
        let mut text = format!("{} {group:<11} {name:<52} {said:<6} {milliseconds:>6} ms", name_of(role));
        if let Some(failure) = failure {
            text += &format!(
                "\n    obligation: {obligation}\n    broken: {}\n    after:",
                plain(&failure.broken)
            );
            for operation in &failure.operations {
                text += &format!("\n      {}", plain(operation));
            }
        }
        *(if failure.is_some() { &mut self.failed } else { &mut self.passed }) += 1;
        self.milliseconds += milliseconds;
        self.cases.push(Line {
            name,
            group: group.name(),
            role: name_of(role),
            obligation,
            outcome: if failure.is_some() { "failed" } else { "passed" },
            operations: outcome.operations,
            milliseconds,
            failure: failure
                .map(|failure| Broken { broken: failure.broken.clone(), after: failure.operations.clone() }),
        });
        text
    }

    pub(super) fn summary(&self) -> String {
        let seconds = self.milliseconds as f64 / 1000.0;
        format!("{} passed, {} failed, in {seconds:.1} s", self.passed, self.failed)
    }

    /// A failure that names the broken cases.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        if self.failed == 0 {
            return Ok(());
        }
        let mut broken: Vec<&str> =
            self.cases.iter().filter(|line| line.failure.is_some()).map(|line| line.name).collect();
        broken.dedup();
        Err(Failure::failed(format!(
            "the {} storage does not keep its obligations: {}",
            self.backend,
            broken.join(", ")
        )))
    }
}
