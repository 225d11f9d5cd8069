//! Simulates swarms, a seed each, and prints the seeds of those in which something was not as it has to be.
//!
//!     cargo run --release -p enjambre-tests --example simulate -- [--seeds COUNT] [--from SEED] [--seed SEED [--trace]]
//!
//! COUNT is how many, 500 unless given, from SEED on, 0 unless given. With `--seed` it is this one, and with `--trace`
//! everything that happens in it is printed. See `docs/SIMULATION.md`.

use std::time::Instant;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use enjambre_tests::sim::run::run;

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
    let (from, seeds) = only.map_or((from, seeds), |seed| (seed, 1));
    let begun = Instant::now();
    let (mut failed, mut delivered, mut events) = (0, 0, 0);
    for seed in from..from + seeds {
        let outcome = run(seed, trace);
        if let Some(failure) = &outcome.failure {
            failed += 1;
            println!("seed {seed}: {failure}");
        }
        delivered += outcome.delivered;
        events += outcome.events;
        if only.is_some() {
            println!("trace {} of {} events", outcome.trace, outcome.events);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{seeds} seeds, {failed} failed; {delivered} deliveries, {events} events, {seconds:.0} s");
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
