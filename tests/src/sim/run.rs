//! Runs complete simulations, one per seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use enjambre_core::runtime::simulation::Simulation;
use parking_lot::Mutex;
use tokio::runtime::Builder;

use super::flaw::Flaw;
use super::trace::Trace;
use super::world::World;

/// The real time after which a simulation counts as hanging; normally it takes a fraction of a second.
const HANG_TIMEOUT: Duration = Duration::from_secs(180);

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}
static HOOK: Once = Once::new();

/// The result of a simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The hash of the trace.
    pub trace: blake3::Hash,
    /// The number of trace events.
    pub events: u64,
    /// The number of verified downloads.
    pub delivered: u64,
    /// The first violated guarantee.
    pub failure: Option<String>,
}

impl Outcome {
    /// Returns the violated guarantee, if any, and the command that reproduces it.
    pub fn report(&self) -> Option<String> {
        let (seed, failure) = (self.seed, self.failure.as_ref()?);
        Some(format!(
            "seed {seed}: {failure}\n    reproduce: cargo run -p enjambre-tests --example simulate -- --seed {seed} --trace"
        ))
    }
}

/// Runs simulations on all cores and calls `each` with every outcome.
///
/// # Errors
/// Returns the seeds of simulations that hang or end their thread.
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
                let started = sender.send((number, seed, None));
                if started.and_then(|()| sender.send((number, seed, Some(run(seed, flaw, false))))).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut running = BTreeMap::new();
    loop {
        match events.recv_timeout(HANG_TIMEOUT) {
            Ok((thread, seed, None)) => {
                running.insert(thread, (seed, Instant::now()));
            }
            Ok((thread, _, Some(outcome))) => {
                running.remove(&thread);
                each(outcome);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if running.is_empty() => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(running.into_values().map(|(seed, _)| seed).collect());
            }
        }
        let hanging = running.values().filter(|(_, started)| started.elapsed() >= HANG_TIMEOUT);
        let hanging: Vec<u64> = hanging.map(|(seed, _)| *seed).collect();
        if !hanging.is_empty() {
            return Err(hanging);
        }
    }
}

/// Runs the simulation of a seed on this thread. With `print` it writes every trace event to standard output.
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
    let runtime = runtime.expect("cannot create the runtime");
    let result = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut world = World::new(seed, flaw, print);
            let trace: Trace = world.trace.clone();
            let mut result = world.run_workload().await;
            if result.is_ok() {
                result = world.check_quiescence().await;
            }
            let delivered = world.model.lock().delivered;
            (trace, delivered, result.err())
        })
    }));
    drop(runtime);
    let panicked = PANICS.with_borrow_mut(std::mem::take).into_iter().next();
    match result {
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
