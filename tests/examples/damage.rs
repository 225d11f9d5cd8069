//! Damages databases and content in many places, one seed after the other: see `enjambre_tests::damage`.
//!
//!     cargo run --release -p enjambre-tests --example damage -- [--seeds 500] [--from 0] [--setups sqlite,sled]
//!
//! A panic, a hang, an unclear error or a wrong byte ends the run with a panic that names the seed.

use std::time::Instant;

use anyhow::{Error, Result};
use clap::Parser;
use enjambre_tests::damage::{self, Target};
use enjambre_tests::node::Setup;

#[derive(Debug, Parser)]
struct Options {
    /// How many seeds for each setup and each kind of database
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// sqlite, sqlite+files, sled, sled+files
    #[arg(long, value_delimiter = ',', default_value = "sqlite,sqlite+files,sled,sled+files")]
    setups: Vec<String>,
    /// Tell of each seed
    #[arg(long)]
    verbose: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    for name in &options.setups {
        let setup: Setup = name.parse().map_err(Error::msg)?;
        for target in Target::ALL {
            // The index and the catalogue are the same wherever content is.
            if setup.content == "files" && target != Target::Content {
                continue;
            }
            let begun = Instant::now();
            let seeds = options.from..options.from + options.seeds;
            let tell = |what: &str| {
                if options.verbose {
                    println!("{what}");
                }
            };
            let tally = damage::run(setup, target, seeds, tell);
            println!("{name}, {target:?}: {tally:?} in {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
