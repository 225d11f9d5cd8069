//! `enjambre storage check`: the conformance kit on the configured backend, in scratch places.

mod report;
pub(super) mod victim;

use clap::Args;
use enjambre_core::storage::Role;
use enjambre_core::storage::conformance::{self, Case, Group, Outcome, crash};

use self::report::Report;
use super::trial::Trial;
use crate::cli::Context;
use crate::cli::output::Stdout;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Run only this case; may be given several times
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// Also kill processes that commit, and look at what they leave behind
    #[arg(long)]
    crash: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let cases = chosen(&arguments.case, arguments.crash)?;
    let mut report = Report::new(&context.loaded.config.storage.backend);
    let mut stdout = Stdout::default();
    if !arguments.json {
        stdout.line(&report.title(cases.len()));
    }
    for role in [Role::Records, Role::Content] {
        let trial = Trial::new(context.registry, &context.loaded, role);
        for case in &cases {
            let running = trial.run(&context.stop, one(&context, &trial, role, case)).await;
            let removed = trial.remove().await;
            let outcome = running.ok_or_else(|| Failure::failed("interrupted"))??;
            removed?;
            let line = report.add(role, &outcome);
            if !arguments.json {
                stdout.line(&line);
            }
        }
    }
    match arguments.json {
        true => stdout.json(&report),
        false => stdout.line(&report.summary()),
    }
    stdout.end()?;
    report.verdict()
}

/// The cases to run: those with these names, or all, those with a kill only where they are asked for.
fn chosen(names: &[String], with_crash: bool) -> Result<Vec<&'static Case>, Failure> {
    if names.is_empty() {
        let crash = crash::CASES.iter().filter(|_| with_crash);
        return Ok(conformance::CASES.iter().chain(crash).collect());
    }
    let known = |name: &String| {
        conformance::case(name).ok_or_else(|| {
            let all = conformance::CASES.iter().chain(crash::CASES).map(|case| case.name);
            let nearest =
                all.max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            let nearest = nearest.unwrap_or_default();
            Failure::usage(format!("there is no case {name:?}; did you mean {nearest}?"))
        })
    };
    names.iter().map(known).collect()
}

async fn one(
    context: &Context<'_>,
    trial: &Trial<'_>,
    role: Role,
    case: &'static Case,
) -> Result<Outcome, Failure> {
    if case.group != Group::Crash {
        return Ok(conformance::run(trial, case).await);
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::from(error).context("this program does not find itself to run it again"))?;
    Ok(crash::run(trial, |place| victim::command(&program, context, role, place), case).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_name_and_those_with_a_kill_on_request() {
        let all = chosen(&[], false).unwrap();
        assert!(all.iter().all(|case| case.group != Group::Crash));
        assert_eq!(chosen(&[], true).unwrap().len(), all.len() + crash::CASES.len());
        let names = ["a_kill_tears_no_batch", "no_update_is_lost"].map(str::to_owned);
        let some: Vec<&str> = chosen(&names, false).unwrap().iter().map(|case| case.name).collect();
        assert_eq!(some, names);
        let error = chosen(&["no_updates_lost".to_owned()], false).unwrap_err();
        assert!(error.message.contains("no_update_is_lost"), "{error}");
    }
}
