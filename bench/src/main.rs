//! Benchmarks Enjambre against other tools, an earlier build and a baseline program in the same run.
//!
//!     cargo run --release --manifest-path bench/Cargo.toml
//!     cargo run --release --manifest-path bench/Cargo.toml -- --case single,publish --rounds 3 \
//!       --tools baseline,libtorrent,enjambre
//!
//! The program installs nothing, skips missing tools, uses loopback only, works in a temporary directory and leaves no
//! process running. The figures come from `/proc`, so it runs on Linux only.

mod cases;
mod goals;
mod limit;
mod machine;
mod options;
mod process;
mod report;
mod stage;
mod supervise;
mod swarm_tracker;
mod tools;
mod torrent;
mod udp_tracker;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use enjambre_tests::binary::{self, with_program};
use serde_json::json;

use crate::cases::Case;
use crate::machine::{ALL_CASES, WarmMemory};
use crate::options::{Cli, Command, Options, Side};
use crate::report::{CaseReport, Contest};
use crate::stage::Stage;
use crate::tools::Tool;
use crate::udp_tracker::Kind;

fn main() -> Result<ExitCode> {
    let Cli { mut options, command } = Cli::parse();
    match (command, options.inside.take()) {
        (None, None) => {
            return supervise::run(&options.dir.unwrap_or_else(std::env::temp_dir));
        }
        (None, Some(folder)) => compare(options, &folder)?,
        (Some(Command::Limit { side }), _) => match side {
            Side::Send { file } => limit::send(&file)?,
            Side::Receive { address, file } => println!("{}", limit::receive(&address, &file)?),
            Side::Hash { file } => println!("{}", limit::hash(&file)?),
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(options: Options, folder: &Path) -> Result<()> {
    let stage = Stage::new(options, folder)?;
    let program = std::path::absolute(stage.options.program.clone().unwrap_or_else(default_program))?;
    let baseline = stage.options.baseline.as_ref().map(std::path::absolute).transpose()?;
    let tools = with_program(&program, || find_tools(&stage.options));
    let mut cases = cases::all(&stage, &tools, &find_trackers(&stage.options));
    let wanted = &stage.options.cases;
    if let Some(unknown) = wanted.iter().find(|name| cases.iter().all(|case| case.name != name.as_str())) {
        let names: Vec<&str> = cases.iter().map(|case| case.name).collect();
        bail!("{unknown:?} is not a case; there are {}", names.join(", "));
    }
    if stage.options.list {
        cases.iter().for_each(|case| println!("{:<16} {}", case.name, case.title));
        return Ok(());
    }
    cases.retain(|case| {
        let is_named = wanted.iter().any(|name| name == case.name);
        is_named || (wanted.is_empty() && (stage.options.large || !case.is_large))
    });
    for case in &mut cases {
        case.contenders.retain(|contender| is_wanted(&stage.options, &contender.name));
    }
    cases.retain(|case| !case.contenders.is_empty());
    cases::select_programs(&mut cases, &program, baseline.as_deref());
    drop(WarmMemory::new(stage.options.size.map_or(ALL_CASES, |size| ALL_CASES.min(12 * size.as_u64()))));
    let mut reports = Vec::new();
    for case in cases {
        let report = run(case, &stage.options);
        println!("\n{}", section(&report));
        reports.push(report);
    }
    println!("{}", aims(&reports));
    with_program(&program, || write(&reports, &tools, &stage.options))
}

/// The release build of the workspace next to this one.
fn default_program() -> PathBuf {
    binary::workspace().join("target/release/enjambre")
}

fn section(report: &CaseReport) -> String {
    let rounds = if report.rounds == 1 { " (one round)" } else { "" };
    let mut text = format!("### {}{rounds}\n\n{}", report.title, report::markdown(&report.table()));
    for line in report.failures() {
        text += &format!("\n{line}\n");
    }
    text
}

fn aims(reports: &[CaseReport]) -> String {
    format!("### Targets\n\n{}", report::markdown(&goals::table(reports)))
}

/// Writes the requested files.
fn write(reports: &[CaseReport], tools: &[Rc<dyn Tool>], options: &Options) -> Result<()> {
    let versions: BTreeMap<&str, String> =
        tools.iter().filter_map(|tool| Some((tool.name(), tool.version().ok()?))).collect();
    let date = machine::date()?;
    if let Some(path) = &options.json {
        let cases: Vec<_> = reports.iter().map(CaseReport::json).collect();
        let all = json!({
            "date": date, "machine": machine::describe(), "rounds": options.rounds, "tools": versions, "cases": cases,
        });
        fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.markdown {
        let others =
            versions.iter().filter(|(name, _)| !name.starts_with("enjambre") && **name != "baseline");
        let others: Vec<String> = others.map(|(name, version)| format!("{name} {version}")).collect();
        let mut text = format!(
            "Measured on {date}: {}; medians of {} rounds unless stated otherwise.\n\
             Versions of the other tools:\n{}.\n\n",
            machine::describe(),
            options.rounds,
            others.join(", ")
        );
        for part in std::iter::once(aims(reports)).chain(reports.iter().map(section)) {
            text += &part;
            text.push('\n');
        }
        let page = fs::read_to_string(path).unwrap_or_default();
        fs::write(path, report::into_page(&page, &text)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Returns the requested tools that are installed.
fn find_tools(options: &Options) -> Vec<Rc<dyn Tool>> {
    let mut tools = tools::all();
    tools.retain(|tool| is_wanted(options, tool.name()));
    tools.retain(|tool| match tool.version() {
        Ok(version) => {
            println!("{}: {version}", tool.name());
            true
        }
        Err(error) => {
            println!("{}: not found, skipped ({error:#})", tool.name());
            false
        }
    });
    tools
}

/// Returns the requested trackers that are installed.
fn find_trackers(options: &Options) -> Vec<Kind> {
    let mut kinds = vec![Kind::Opentracker, Kind::Aquatic];
    kinds.retain(|kind| is_wanted(options, kind.name()));
    kinds.retain(|kind| match kind.look() {
        Ok(()) => true,
        Err(error) => {
            println!("{}: not found, skipped ({error:#})", kind.name());
            false
        }
    });
    kinds
}

fn is_wanted(options: &Options, name: &str) -> bool {
    let first = name.split([' ', ':']).next().unwrap_or_default();
    options.tools.is_empty() || options.tools.iter().any(|tool| tool == first)
}

fn run(case: Case<'_>, options: &Options) -> CaseReport {
    let rounds = options.rounds.clamp(1, case.most_rounds);
    eprintln!("\n{}: {}", case.name, case.title);
    let new = |name: &String| Contest { name: name.clone(), ..Contest::default() };
    let mut contests: Vec<Contest> = case.contenders.iter().map(|contender| new(&contender.name)).collect();
    // A warm-up: the first contender after a file was written would pay for its writeback.
    if let (Some(first), true) = (case.contenders.first(), rounds > 1) {
        let _ = catch_unwind(AssertUnwindSafe(&first.run));
    }
    for round in 1..=rounds {
        // Each round starts with another contender, so that none always follows the same one.
        let mut turns: Vec<_> = case.contenders.iter().zip(&mut contests).collect();
        let first = (round - 1) % turns.len();
        turns.rotate_left(first);
        // A failed contender is not repeated.
        turns.retain(|(_, contest)| contest.failures.is_empty());
        for (contender, contest) in turns {
            let begun = Instant::now();
            // The test harness panics on failed expectations.
            let result = catch_unwind(AssertUnwindSafe(&contender.run))
                .unwrap_or_else(|_| Err(anyhow!("the contender panicked")));
            let took = begun.elapsed().as_secs_f64();
            match result {
                Ok(sample) => {
                    let first = case.columns.first();
                    let value = first.and_then(|column| sample.get(column.key)).copied().unwrap_or_default();
                    let unit = first.map_or("", |column| column.title);
                    eprintln!(
                        "  {round}/{rounds} {}: {value:.3} {unit} ({took:.1} s with all around it)",
                        contest.name
                    );
                    contest.samples.push(sample);
                }
                Err(error) => {
                    eprintln!("  {round}/{rounds} {}: failed: {error:#}", contest.name);
                    contest.failures.push(format!("{error:#}"));
                }
            }
        }
    }
    let Case { name, title, columns, reference, .. } = case;
    CaseReport { name, title, columns, reference, rounds, contests }
}
