//! Swarms of the real core that live through faults, a seed each; see `docs/SIMULATION.md`.
//!
//! A seed that fails is printed with the command that shows what happened.

use std::collections::BTreeMap;

use enjambre_tests::sim::flaw::Flaw;
use enjambre_tests::sim::run::{Outcome, run_many};

/// Seeds in which something was wrong once. What was is tested by itself where it was mended.
const REGRESSIONS: &[u64] = &[602, 1142, 2239, 2603, 5866, 9873];
/// Within so many seeds what is broken has to be found.
const FOUND_WITHIN: u64 = 40;

fn all(seeds: impl Iterator<Item = u64> + Send + 'static, flaw: Option<Flaw>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let ended = run_many(seeds, flaw, |outcome| outcomes.push(outcome));
    assert_eq!(ended, Ok(()), "the worlds of these seeds do not end");
    outcomes
}

#[test]
fn five_hundred_worlds_are_as_they_have_to_be() {
    let outcomes = all(REGRESSIONS.iter().copied().chain(0..500), None);
    let failed: Vec<String> = outcomes.iter().filter_map(Outcome::report).collect();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    let delivered: u64 = outcomes.iter().map(|outcome| outcome.delivered).sum();
    assert!(delivered > 5000, "only {delivered} deliveries");
}

#[test]
fn the_same_happens_each_time_from_the_same_seed() {
    let mut traces = BTreeMap::new();
    for outcome in all((0..15).chain(REGRESSIONS.iter().copied()).flat_map(|seed| [seed, seed]), None) {
        assert!(outcome.events > 100);
        let before = traces.entry(outcome.seed).or_insert_with(|| outcome.clone());
        assert_eq!(*before, outcome);
    }
    assert_ne!(traces[&0].trace, traces[&1].trace);
}

#[test]
fn what_is_broken_is_found() {
    for flaw in Flaw::ALL {
        let outcomes = all(0..FOUND_WITHIN, Some(flaw));
        let found_as = match flaw {
            Flaw::LyingDisks => "and lost it",
            Flaw::RottenReads => "is not what was published",
            Flaw::ForgedAcknowledgements => "was acknowledged",
        };
        let mut failures = outcomes.iter().filter_map(|outcome| outcome.failure.as_ref());
        assert!(failures.any(|failure| failure.contains(found_as)), "{flaw:?} is not found");
    }
}
