//! Runs the worlds of seeds from their beginning to their end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use enjambre_core::machine::simulated::Simulation;
use parking_lot::Mutex;
use tokio::runtime::Builder;

use super::flaw::Flaw;
use super::trace::Trace;
use super::world::World;

/// A world takes a fraction of a second. One that takes so long does not end.
const HANGS: Duration = Duration::from_secs(180);

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}
static HOOK: Once = Once::new();

/// How the world of a seed went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The hash of everything that happened.
    pub trace: blake3::Hash,
    /// How many things happened.
    pub events: u64,
    /// How often something was delivered.
    pub delivered: u64,
    /// What was not as it has to be.
    pub failure: Option<String>,
}

impl Outcome {
    /// What was wrong and how to see it again, where something was.
    pub fn report(&self) -> Option<String> {
        let (seed, failure) = (self.seed, self.failure.as_ref()?);
        Some(format!(
            "seed {seed}: {failure}\n    again: cargo run -p enjambre-tests --example simulate -- --seed {seed} --trace"
        ))
    }
}

/// Runs the worlds of many seeds, on as many threads as there are cores, and tells of each when it has ended.
///
/// # Errors
/// The seeds of those that do not end, or end the thread that they run on.
pub fn run_many(
    seeds: impl Iterator<Item = u64> + Send + 'static,
    flaw: Option<Flaw>,
    mut each: impl FnMut(Outcome),
) -> Result<(), Vec<u64>> {
    let seeds = Arc::new(Mutex::new(seeds));
    let (sender, events) = mpsc::channel();
    for number in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        let (seeds, sender) = (Arc::clone(&seeds), sender.clone());
        std::thread::spawn(move || {
            loop {
                let Some(seed) = seeds.lock().next() else { return };
                let told = sender.send((number, seed, None));
                if told.and_then(|()| sender.send((number, seed, Some(run(seed, flaw, false))))).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut under_way = BTreeMap::new();
    loop {
        match events.recv_timeout(HANGS) {
            Ok((thread, seed, None)) => {
                under_way.insert(thread, (seed, Instant::now()));
            }
            Ok((thread, _, Some(outcome))) => {
                under_way.remove(&thread);
                each(outcome);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if under_way.is_empty() => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(under_way.into_values().map(|(seed, _)| seed).collect());
            }
        }
        let hang = under_way.values().filter(|(_, begun)| begun.elapsed() >= HANGS);
        let hang: Vec<u64> = hang.map(|(seed, _)| *seed).collect();
        if !hang.is_empty() {
            return Err(hang);
        }
    }
}

/// Runs the world of a seed on this thread; with `print` everything that happens goes to the standard output.
pub fn run(seed: u64, flaw: Option<Flaw>, print: bool) -> Outcome {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            before(panic);
        }));
    });
    PANICS.with_borrow_mut(Vec::clear);
    let _simulation = Simulation::begin(seed);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without sockets can be made");
    let lived = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut world = World::new(seed, flaw, print);
            let trace: Trace = world.trace.clone();
            let mut result = world.live().await;
            if result.is_ok() {
                result = world.calm().await;
            }
            let delivered = world.model.lock().delivered;
            (trace, delivered, result.err())
        })
    }));
    drop(runtime);
    let panicked = PANICS.with_borrow_mut(std::mem::take).into_iter().next();
    match lived {
        Ok((trace, delivered, failure)) => {
            let (trace, events) = trace.hash();
            Outcome { seed, trace, events, delivered, failure: panicked.or(failure) }
        }
        Err(_) => {
            let trace = blake3::hash(b"");
            Outcome { seed, trace, events: 0, delivered: 0, failure: panicked }
        }
    }
}
