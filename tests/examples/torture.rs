//! `kill -9` a thousand times: see `enjambre_tests::torture` for what is killed and what has to be there afterwards.
//!
//!     cargo run --release -p enjambre-tests --example torture -- --backend sqlite --kills 1000 [--seed N]
//!
//! Half of the kills are with the content of files in the database, half with content in files. A difference ends the
//! run with a panic, and the folder with everything stays where it is.

use std::time::Instant;

use anyhow::{Error, Result};
use clap::Parser;
use enjambre_tests::node::Setup;
use enjambre_tests::torture;

#[derive(Debug, Parser)]
struct Options {
    /// sqlite or sled
    #[arg(long, default_value = "sqlite")]
    backend: String,
    /// How many daemons are killed at least
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// What the choices are made from; told at the start
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(rand::random);
    for setup in [options.backend.clone(), format!("{}+files", options.backend)] {
        let begun = Instant::now();
        println!("{setup}, seed {seed}");
        let parsed: Setup = setup.parse().map_err(Error::msg)?;
        let tally = torture::run(parsed, options.kills.div_ceil(2), seed, |tally| println!("  {tally:?}"));
        println!("{setup}: nothing lost in {:.0} s: {tally:?}", begun.elapsed().as_secs_f64());
    }
    Ok(())
}
