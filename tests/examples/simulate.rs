//! Simulates swarms, a seed each, and prints the seeds of those in which something was not as it has to be.
//!
//!     cargo run --release -p enjambre-tests --example simulate -- [--seeds COUNT] [--from SEED] [--seed SEED [--trace]]
//!
//! COUNT is how many, 500 unless given, from SEED on, 0 unless given. With `--seed` it is this one, and with `--trace`
//! everything that happens in it is printed. See `docs/SIMULATION.md`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use enjambre_tests::sim::run::{Outcome, run, run_many};

fn main() -> Result<ExitCode> {
    let (mut seeds, mut from, mut only, mut trace) = (500, 0, None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let value = args.next().with_context(|| format!("{arg} needs a number"))?;
            value.parse().with_context(|| format!("{arg} needs a number, and {value:?} is none"))
        };
        match arg.as_str() {
            "--seeds" => seeds = number()?,
            "--from" => from = number()?,
            "--seed" => only = Some(number()?),
            "--trace" => trace = true,
            _ => bail!("{arg:?} is not an option; there are --seeds, --from, --seed and --trace"),
        }
    }
    let begun = Instant::now();
    let (mut done, mut failed, mut delivered, mut events) = (0, 0, 0, 0);
    let mut each = |outcome: Outcome| {
        if let Some(report) = outcome.report() {
            failed += 1;
            println!("{report}");
        }
        done += 1;
        delivered += outcome.delivered;
        events += outcome.events;
    };
    match only {
        Some(seed) => {
            let outcome = run(seed, None, trace);
            println!("trace {} of {} events", outcome.trace, outcome.events);
            each(outcome);
        }
        None => run_many(from..from + seeds, None, each)
            .map_err(|seeds| anyhow!("the worlds of these seeds do not end: {seeds:?}"))?,
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{done} seeds, {failed} failed; {delivered} deliveries, {events} events, {seconds:.0} s");
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
