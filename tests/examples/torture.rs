//! Kills nodes with `kill -9` at random moments; see `enjambre_tests::torture`.
//!
//!     cargo run --release -p enjambre-tests --example torture -- --backend sqlite --kills 1000 [--seed N]
//!
//! Half of the kills are with content in the database, half with content in files. If data is lost or wrong, the run panics
//! and keeps the test directory.

use std::time::Instant;

use anyhow::{Error, Result};
use clap::Parser;
use enjambre_tests::setup::Setup;
use enjambre_tests::torture;

#[derive(Debug, Parser)]
struct Options {
    /// Storage backend: sqlite or sled
    #[arg(long, default_value = "sqlite")]
    backend: String,
    /// Minimum number of kills
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// Seed of the run; random by default, printed at the start
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(rand::random);
    for setup in [options.backend.clone(), format!("{}+files", options.backend)] {
        let started = Instant::now();
        println!("{setup}, seed {seed}");
        let parsed: Setup = setup.parse().map_err(Error::msg)?;
        let tally = torture::run(parsed, options.kills.div_ceil(2), seed, |tally| println!("  {tally:?}"));
        println!("{setup}: no data lost in {:.0} s: {tally:?}", started.elapsed().as_secs_f64());
    }
    Ok(())
}
