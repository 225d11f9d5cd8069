//! Simulates power cuts; see `enjambre_tests::power_cut`. Requires root to mount a file system.
//!
//!     cargo run --release -p enjambre-tests --example power_cut -- [--cuts 50] [--setups sqlite,sled] [--seed N]

use std::time::Instant;

use anyhow::{Context, Error, Result};
use clap::Parser;
use enjambre_tests::power_cut;
use enjambre_tests::setup::Setup;

#[derive(Debug, Parser)]
struct Options {
    /// Number of power cuts per setup
    #[arg(long, default_value_t = 50)]
    cuts: u32,
    /// Setups: sqlite, sqlite+files, sled, sled+files
    #[arg(long, value_delimiter = ',', default_value = "sqlite,sqlite+files,sled,sled+files")]
    setups: Vec<String>,
    /// Seed of the run; random by default, printed at the start
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(rand::random);
    for name in &options.setups {
        let setup: Setup = name.parse().map_err(Error::msg)?;
        println!("{name}, seed {seed}");
        let started = Instant::now();
        let tally =
            power_cut::run(name, setup, options.cuts, seed, |_| {}).context("cannot mount a file system")?;
        println!("{name}: no data lost in {:.0} s: {tally:?}", started.elapsed().as_secs_f64());
    }
    Ok(())
}
