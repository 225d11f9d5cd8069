//! Runs simulations, one per seed, and prints the seeds that violate a guarantee. See `docs/SIMULATION.md`.
//!
//!     cargo run --release -p enjambre-tests --example simulate -- [--seeds COUNT] [--from SEED] [--seed SEED [--trace]]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::Parser;
use enjambre_tests::sim::run::{Outcome, run, run_many};

#[derive(Debug, Parser)]
struct Options {
    /// Number of seeds
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// First seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print all events of the seed
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let started = Instant::now();
    let (mut done, mut failed, mut delivered, mut events) = (0, 0, 0, 0);
    let mut record = |outcome: Outcome| {
        if let Some(report) = outcome.report() {
            failed += 1;
            println!("{report}");
        }
        done += 1;
        delivered += outcome.delivered;
        events += outcome.events;
    };
    match options.seed {
        Some(seed) => {
            let outcome = run(seed, None, options.trace);
            println!("trace {} of {} events", outcome.trace, outcome.events);
            record(outcome);
        }
        None => run_many(options.from..options.from + options.seeds, None, record)
            .map_err(|seeds| anyhow!("simulations of these seeds do not end: {seeds:?}"))?,
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{done} seeds, {failed} failed; {delivered} deliveries, {events} events, {seconds:.0} s");
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
