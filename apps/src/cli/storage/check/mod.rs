//! `enjambre storage check`: the conformance tests on the configured backend, in scratch places.

pub(crate) mod crash_writer;
mod report;

use clap::Args;
use enjambre_control::{Failure, ResultContext};
use enjambre_core::Role;
use enjambre_testkit::storage::{self, Case, Group, Outcome, crash};

use self::report::Report;
use super::scratch::ScratchBuilder;
use crate::cli::context::Context;
use crate::cli::output::Stdout;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Run only this test; can be repeated
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// Also run crash tests, which kill processes during commits
    #[arg(long)]
    crash: bool,
    /// Print a JSON report
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let cases = select(&arguments.case, arguments.crash)?;
    let mut report = Report::new(&context.loaded.config.storage.backend);
    let mut stdout = Stdout::default();
    if !arguments.json {
        stdout.line(&report.title(cases.len()));
    }
    for role in [Role::Records, Role::Content] {
        let builder = ScratchBuilder::new(context.registry, &context.loaded, role);
        for case in &cases {
            let outcome = builder.run(&context.stop, run_case(&context, &builder, role, case)).await?;
            let line = report.add(role, &outcome);
            if !arguments.json {
                line.lines().for_each(|line| stdout.line(line));
            }
        }
    }
    match arguments.json {
        true => stdout.json(&report),
        false => stdout.line(&report.summary()),
    }
    stdout.finish()?;
    report.verdict()
}

/// Returns the tests with these names. By default, returns all tests, and the crash tests if requested.
fn select(names: &[String], with_crash: bool) -> Result<Vec<&'static Case>, Failure> {
    if names.is_empty() {
        let crash = crash::CASES.iter().filter(|_| with_crash);
        return Ok(storage::CASES.iter().chain(crash).collect());
    }
    let known = |name: &String| {
        storage::case(name).ok_or_else(|| {
            let all = storage::CASES.iter().chain(crash::CASES).map(|case| case.name);
            let similar = all.map(|known| (strsim::jaro_winkler(known, name), known));
            let nearest =
                similar.filter(|(similarity, _)| *similarity > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
            let hint = nearest.map_or_else(String::new, |(_, known)| format!("; did you mean {known:?}?"));
            Failure::usage(format!("unknown test {name:?}{hint}"))
        })
    };
    names.iter().map(known).collect()
}

async fn run_case(
    context: &Context<'_>,
    builder: &ScratchBuilder<'_>,
    role: Role,
    case: &'static Case,
) -> Result<Outcome, Failure> {
    if case.group != Group::Crash {
        return Ok(storage::run(builder, case).await);
    }
    let program = std::env::current_exe().context("cannot find the executable of this program")?;
    Ok(crash::run(builder, |place| crash_writer::command(&program, context, role, place), case).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_tests_are_selected_on_request() {
        let all = select(&[], false).unwrap();
        assert!(all.iter().all(|case| case.group != Group::Crash));
        assert_eq!(select(&[], true).unwrap().len(), all.len() + crash::CASES.len());
        let names = ["batches_are_atomic_after_kill", "concurrent_updates_are_not_lost"].map(str::to_owned);
        let some: Vec<&str> = select(&names, false).unwrap().iter().map(|case| case.name).collect();
        assert_eq!(some, names);
        let error = select(&["concurrent_updates_not_lost".to_owned()], false).unwrap_err();
        assert!(error.message.contains("concurrent_updates_are_not_lost"), "{error}");
        assert_eq!(select(&["nope".to_owned()], false).unwrap_err().message, "unknown test \"nope\"");
    }
}
