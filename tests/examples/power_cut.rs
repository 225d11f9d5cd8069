//! Cuts the power again and again: see `enjambre_tests::power_cut`. It takes root, to mount a file system in a file.
//!
//!     cargo run --release -p enjambre-tests --example power_cut -- [--cuts 50] [--setups sqlite,sled] [--seed N]

use std::time::Instant;

use anyhow::{Context, Error, Result};
use clap::Parser;
use enjambre_tests::node::Setup;
use enjambre_tests::power_cut;

#[derive(Debug, Parser)]
struct Options {
    /// How many cuts for each setup
    #[arg(long, default_value_t = 50)]
    cuts: u32,
    /// sqlite, sqlite+files, sled, sled+files
    #[arg(long, value_delimiter = ',', default_value = "sqlite,sqlite+files,sled,sled+files")]
    setups: Vec<String>,
    /// What the choices are made from; told at the start
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(rand::random);
    for name in &options.setups {
        let setup: Setup = name.parse().map_err(Error::msg)?;
        println!("{name}, seed {seed}");
        let begun = Instant::now();
        let tally =
            power_cut::run(name, setup, options.cuts, seed, |_| {}).context("nothing can be mounted")?;
        println!("{name}: nothing lost in {:.0} s: {tally:?}", begun.elapsed().as_secs_f64());
    }
    Ok(())
}
