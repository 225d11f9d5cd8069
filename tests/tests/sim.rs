//! Simulated swarms with injected faults, one for each seed; see `docs/SIMULATION.md`.
//!
//! A failing seed is printed with the command that shows its trace.

use std::collections::BTreeMap;

use enjambre_tests::sim::flaw::Flaw;
use enjambre_tests::sim::run::{Outcome, run_many};

/// The number of seeds within which an injected flaw must be detected.
const SEEDS_PER_FLAW: u64 = 40;

fn run_all(seeds: impl Iterator<Item = u64> + Send + 'static, flaw: Option<Flaw>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let ended = run_many(seeds, flaw, |outcome| outcomes.push(outcome));
    assert_eq!(ended, Ok(()), "the simulations of these seeds did not end");
    outcomes
}

#[test]
fn simulated_swarms_keep_their_guarantees() {
    let outcomes = run_all(0..250, None);
    let failed: Vec<String> = outcomes.iter().filter_map(Outcome::report).collect();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    let delivered: u64 = outcomes.iter().map(|outcome| outcome.delivered).sum();
    assert!(delivered > 2500, "only {delivered} deliveries");
}

#[test]
fn same_seed_gives_same_trace() {
    let mut traces = BTreeMap::new();
    for outcome in run_all((0..20).flat_map(|seed| [seed, seed]), None) {
        assert!(outcome.events > 100);
        let first = traces.entry(outcome.seed).or_insert_with(|| outcome.clone());
        assert_eq!(*first, outcome);
    }
    assert_ne!(traces[&0].trace, traces[&1].trace);
}

#[test]
fn injected_flaws_are_detected() {
    for flaw in Flaw::ALL {
        let outcomes = run_all(0..SEEDS_PER_FLAW, Some(flaw));
        let expected = match flaw {
            Flaw::IgnoredSyncs => "lost the complete file",
            Flaw::CorruptedReads => "differs from the published content",
            Flaw::ForgedAcknowledgements => "was acknowledged",
            Flaw::UnauthenticatedNodes => "accepted a relayed request",
            Flaw::HiddenAddresses => "announces the foreign endpoint",
        };
        let mut failures = outcomes.iter().filter_map(|outcome| outcome.failure.as_ref());
        assert!(failures.any(|failure| failure.contains(expected)), "{flaw:?} is not detected");
    }
}
