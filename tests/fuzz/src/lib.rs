//! Runs fuzz targets, as part of the tests of the crates that have them.
//!
//! A target is a function that is given any bytes and panics where a decoder does what it must not. Its corpus is the file
//! `corpus/NAME.txt`: an input a line, in hexadecimal digits; lines that begin with `#` say what the next ones found once.
//! [`run`] gives each target its corpus, and then changed copies of it, the same in every run: some changed blindly, most
//! by the [`Form`] of the target's inputs, so that what is behind the first check is reached, too. Variables make the run
//! longer or another one. See `README.md`.

mod blind;
mod cbor;
pub mod form;
pub mod items;
mod text;
mod zmtp;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use form::{Changer, Form};

/// A target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    name: &'static str,
    form: Form,
    test: fn(&[u8]),
}

impl Target {
    /// The one of this name, which its corpus has, too, with inputs of this form; `test` panics where something is wrong with
    /// one.
    pub const fn new(name: &'static str, form: Form, test: fn(&[u8])) -> Self {
        Self { name, form, test }
    }
}

/// How many changed inputs each target gets where [`EXECUTIONS`] does not say.
const CHANGED: u64 = 4000;
/// The variable that sets how many changed inputs each target gets.
pub const EXECUTIONS: &str = "ENJAMBRE_FUZZ_EXECUTIONS";
/// The variable that sets for how many seconds each target is run at most.
pub const SECONDS: &str = "ENJAMBRE_FUZZ_SECONDS";
/// The variable that sets another sequence of changes: a number.
pub const SEED: &str = "ENJAMBRE_FUZZ_SEED";
/// The variable that leaves out the targets that do not have this in their name.
pub const TARGET: &str = "ENJAMBRE_FUZZ_TARGET";
/// No changed input is longer.
const LONGEST: usize = 4096;
/// How often the clock is looked at.
const BETWEEN_LOOKS: u64 = 256;

/// How long a run is, and which one.
#[derive(Debug, Clone, Copy)]
struct Length {
    changed: u64,
    time: Option<Duration>,
    seed: u64,
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// The corpus of a target.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name).with_extension("txt");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let inputs = text.lines().filter(|line| !line.starts_with('#'));
    inputs.map(|line| hex::decode(line).unwrap_or_else(|error| panic!("{line} in {name}: {error}"))).collect()
}

/// Runs every target on its corpus and on changed copies of it, as many at a time as there are cores.
///
/// # Panics
/// When a target does; the message names it and the input.
pub fn run(targets: &[Target]) {
    let (executions, seconds) = (number(EXECUTIONS), number(SECONDS));
    let only = std::env::var(TARGET).unwrap_or_default();
    let length = Length {
        changed: executions.unwrap_or(if seconds.is_some() { u64::MAX } else { CHANGED }),
        time: seconds.map(Duration::from_secs),
        seed: number(SEED).unwrap_or(0),
    };
    let asked = executions.is_some() || seconds.is_some();
    let queue: VecDeque<Target> =
        targets.iter().filter(|target| target.name.contains(&only)).copied().collect();
    let (queue, failed) = (Mutex::new(queue), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("nobody panics with it").pop_front();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let begun = Instant::now();
                    let (times, failure) = short(target, length);
                    if asked {
                        println!("{}: {times} executions in {:.1?}", target.name, begun.elapsed());
                    }
                    failed.lock().expect("nobody panics with it").extend(failure);
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nobody panics with it");
    assert!(failed.is_empty(), "failed: {}", failed.join("; "));
}

/// How often the target was run, and what failed, if anything did.
fn short(Target { name, form, test }: Target, length: Length) -> (u64, Option<String>) {
    let corpus = corpus(name);
    let fails = |input: &[u8]| {
        let failed = catch_unwind(AssertUnwindSafe(|| test(input))).is_err();
        failed.then(|| format!("{name} with {}", hex::encode(input)))
    };
    if let Some(failure) = corpus.iter().find_map(|input| fails(input)) {
        return (corpus.len() as u64, Some(failure));
    }
    // Each target has a sequence of its own.
    let seed = name.bytes().fold(length.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = SmallRng::seed_from_u64(seed);
    let mut changer = Changer::new(form, &corpus);
    let begun = Instant::now();
    let is_over = |times: u64| {
        let look = times.is_multiple_of(BETWEEN_LOOKS);
        look && length.time.is_some_and(|time| begun.elapsed() >= time)
    };
    let mut times = 0;
    while times < length.changed && !is_over(times) {
        let mut input = changer.changed(&mut random);
        input.truncate(LONGEST);
        times += 1;
        if let Some(failure) = fails(&input) {
            return (times, Some(failure));
        }
    }
    (times, None)
}

/// Some number between the least and one below the most.
fn below(random: &mut SmallRng, most: usize) -> usize {
    random.random_range(0..most.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_fails_is_named_with_its_input() {
        let test = |input: &[u8]| assert!(!input.starts_with(b"b"));
        let failed = catch_unwind(|| run(&[Target::new("short-run", Form::Bytes, test)]));
        let message = *failed.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("short-run with 62"), "{message}");
    }
}
