//! Damages databases and content at random locations; see `enjambre_tests::damage`.
//!
//!     cargo run --release -p enjambre-tests --example damage -- [--seeds 500] [--from 0] [--setups sqlite,sled]
//!
//! Panics with the seed if the program panics, hangs, prints an invalid error message or delivers a wrong byte.

use std::time::Instant;

use anyhow::{Error, Result};
use clap::Parser;
use enjambre_tests::damage::{self, Target};
use enjambre_tests::setup::Setup;

#[derive(Debug, Parser)]
struct Options {
    /// Number of seeds per setup and kind of data
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// First seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Setups: sqlite, sqlite+files, sled, sled+files
    #[arg(long, value_delimiter = ',', default_value = "sqlite,sqlite+files,sled,sled+files")]
    setups: Vec<String>,
    /// Print every seed
    #[arg(long)]
    verbose: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    for name in &options.setups {
        let setup: Setup = name.parse().map_err(Error::msg)?;
        for target in Target::ALL {
            // Library and catalogue do not depend on the content location.
            if setup.content == "files" && target != Target::Content {
                continue;
            }
            let started = Instant::now();
            let seeds = options.from..options.from + options.seeds;
            let print = |damage: &str| {
                if options.verbose {
                    println!("{damage}");
                }
            };
            let tally = damage::run(setup, target, seeds, print);
            println!("{name}, {target:?}: {tally:?} in {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
