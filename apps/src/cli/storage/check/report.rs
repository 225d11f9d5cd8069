//! The report of `enjambre storage check`, as text or JSON.

use enjambre_control::Failure;
use enjambre_core::Role;
use enjambre_testkit::storage::{Case, KIT_VERSION, Outcome};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    kit_version: u32,
    backend: String,
    passed: usize,
    failed: usize,
    duration_ms: u64,
    cases: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    group: &'static str,
    role: &'static str,
    requirement: &'static str,
    outcome: &'static str,
    /// Number of storage operations.
    operations: u64,
    duration_ms: u64,
    #[serde(flatten)]
    failure: Option<Violation>,
}

#[derive(Debug, Serialize)]
struct Violation {
    violation: String,
    /// The last storage operations, oldest first.
    last_operations: Vec<String>,
}

impl Report {
    pub(super) fn new(backend: &str) -> Self {
        let (kit_version, backend) = (KIT_VERSION, backend.to_owned());
        Self { kit_version, backend, passed: 0, failed: 0, duration_ms: 0, cases: Vec::new() }
    }

    pub(super) fn title(&self, cases: usize) -> String {
        let Self { backend, kit_version, .. } = self;
        format!(
            "storage {backend}, conformance test suite {kit_version}: {cases} tests for records and for content"
        )
    }

    /// Adds the outcome of a test. Returns its text, which is one line, or more if the test failed.
    pub(super) fn add(&mut self, role: Role, outcome: &Outcome) -> String {
        let Case { name, group, requirement, .. } = *outcome.case;
        let duration_ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        let failure = outcome.result.as_ref().err();
        let result = if failure.is_some() { "FAILED" } else { "ok" };
        let mut text = format!("{} {group:<11} {name:<52} {result:<6} {duration_ms:>6} ms", role.name());
        if let Some(failure) = failure {
            text += &format!(
                "\n    requirement: {requirement}\n    violation: {}\n    last operations:",
                failure.violation
            );
            for operation in &failure.operations {
                text += &format!("\n      {}", operation);
            }
        }
        *(if failure.is_some() { &mut self.failed } else { &mut self.passed }) += 1;
        self.duration_ms += duration_ms;
        self.cases.push(Line {
            name,
            group: group.name(),
            role: role.name(),
            requirement,
            outcome: if failure.is_some() { "failed" } else { "passed" },
            operations: outcome.operations,
            duration_ms,
            failure: failure.map(|failure| Violation {
                violation: failure.violation.clone(),
                last_operations: failure.operations.clone(),
            }),
        });
        text
    }

    pub(super) fn summary(&self) -> String {
        let seconds = self.duration_ms as f64 / 1000.0;
        format!("{} passed, {} failed, in {seconds:.1} s", self.passed, self.failed)
    }

    /// Returns a failure that names the failed tests, if any.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        if self.failed == 0 {
            return Ok(());
        }
        let mut failed: Vec<&str> =
            self.cases.iter().filter(|line| line.failure.is_some()).map(|line| line.name).collect();
        failed.dedup();
        Err(Failure::failed(format!(
            "the {} storage violates requirements: {}",
            self.backend,
            failed.join(", ")
        )))
    }
}
