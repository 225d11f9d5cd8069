//! Runs fuzz targets, as part of the tests of the crates that have them.
//!
//! A target is a function that is given any bytes and panics where a decoder does what it must not. Its corpus is the file
//! `corpus/NAME.txt`: an input a line, in hexadecimal digits; lines that begin with `#` say what the next ones found once.
//! [`run`] gives each target its corpus, and then changed copies of it, the same in every run; the
//! variable [`EXECUTIONS`] makes the run longer. See `README.md`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// The name of a target, and the target.
pub type Target = (&'static str, fn(&[u8]));

/// How many changed inputs each target gets where [`EXECUTIONS`] does not say.
const CHANGED: u64 = 4000;
/// The variable that sets how many changed inputs each target gets.
pub const EXECUTIONS: &str = "ENJAMBRE_FUZZ_EXECUTIONS";
/// No input is longer in a short run.
const LONGEST: usize = 4096;

/// The corpus of a target.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name).with_extension("txt");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let inputs = text.lines().filter(|line| !line.starts_with('#'));
    inputs.map(|line| hex::decode(line).unwrap_or_else(|error| panic!("{line} in {name}: {error}"))).collect()
}

/// Runs every target on its corpus and on changed copies of it, each in a thread of its own.
///
/// # Panics
/// When a target does; the message names it and the input.
pub fn run(targets: &[Target]) {
    let changed = std::env::var(EXECUTIONS).ok().and_then(|number| number.parse().ok()).unwrap_or(CHANGED);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            targets.iter().map(|target| scope.spawn(move || short(*target, changed))).collect();
        runs.into_iter()
            .filter_map(|run| run.join().unwrap_or_else(|_| Some("a corpus".to_owned())))
            .collect()
    });
    assert!(failed.is_empty(), "failed: {}", failed.join("; "));
}

/// What failed, if anything did.
fn short((name, target): Target, changed: u64) -> Option<String> {
    let corpus = corpus(name);
    let fails = |input: &[u8]| {
        let failed = catch_unwind(AssertUnwindSafe(|| target(input))).is_err();
        failed.then(|| format!("{name} with {}", hex::encode(input)))
    };
    if let Some(failure) = corpus.iter().find_map(|input| fails(input)) {
        return Some(failure);
    }
    // Each target has a sequence of its own.
    let seed = name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = SmallRng::seed_from_u64(seed);
    (0..changed).find_map(|_| fails(&change(&corpus, &mut random)))
}

/// A copy of an input of the corpus with a few changes.
fn change(corpus: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    let mut input = corpus.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=input.len());
        let end = (at + random.random_range(1..9)).min(input.len());
        let length = input.len();
        match random.random_range(0..7) {
            0 if at < length => input[at] ^= 1 << random.random_range(0..8),
            1 if at < length => {
                input[at] = *[0, 1, 0x17, 0x18, 0x1b, 0x7f, 0x80, 0x9b, 0xff].choose(random).unwrap_or(&0);
            }
            2 => input.insert(at, random.random()),
            3 => drop(input.drain(at..end)),
            4 => input.extend_from_within(at..end),
            5 => input.truncate(at),
            _ => {
                let other = corpus.choose(random).map_or(&[][..], Vec::as_slice);
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input.truncate(LONGEST);
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_fails_is_named_with_its_input() {
        let failed = catch_unwind(|| run(&[("short-run", |input| assert!(!input.starts_with(b"b")))]));
        let message = *failed.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("short-run with 62"), "{message}");
    }
}
