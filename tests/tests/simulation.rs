//! Swarms of the real core that live through faults, a seed each; see `docs/SIMULATION.md`.
//!
//! A seed that fails is printed; `cargo run -p enjambre-tests --example simulate -- --seed SEED --trace` shows what happened.

use std::sync::mpsc;
use std::time::Duration;

use enjambre_tests::sim::run::{Outcome, run};

/// Seeds in which something was wrong once. What was is tested by itself where it was mended.
const REGRESSIONS: &[u64] = &[51];
/// A world takes a fraction of a second. One that takes so long does not end.
const HANGS: Duration = Duration::from_secs(180);

/// Runs the worlds of these seeds one after the other; fails where one does not end.
fn run_all(seeds: impl Iterator<Item = u64> + Send + 'static, mut each: impl FnMut(Outcome)) {
    let (sender, outcomes) = mpsc::channel();
    std::thread::spawn(move || {
        for seed in seeds {
            if sender.send((seed, None)).and_then(|()| sender.send((seed, Some(run(seed, false))))).is_err() {
                return;
            }
        }
    });
    let mut last = 0;
    loop {
        match outcomes.recv_timeout(HANGS) {
            Ok((seed, None)) => last = seed,
            Ok((_, Some(outcome))) => each(outcome),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the world of seed {last} does not end"),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[test]
fn five_hundred_worlds_are_as_they_have_to_be() {
    let (mut delivered, mut failed) = (0, Vec::new());
    run_all(REGRESSIONS.iter().copied().chain(0..500), |outcome| {
        delivered += outcome.delivered;
        failed.extend(outcome.failure.map(|failure| format!("seed {}: {failure}", outcome.seed)));
    });
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(delivered > 5000, "only {delivered} deliveries");
}

#[test]
fn the_same_happens_each_time_from_the_same_seed() {
    let mut outcomes = Vec::new();
    let seeds = (0..15).chain(REGRESSIONS.iter().copied());
    run_all(seeds.flat_map(|seed| [seed, seed]), |outcome| outcomes.push(outcome));
    for twice in outcomes.chunks(2) {
        assert_eq!(twice[0], twice[1]);
        assert!(twice[0].events > 100);
    }
    assert_ne!(outcomes[0].trace, outcomes[2].trace);
}
