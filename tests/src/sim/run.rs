//! Runs the world of one seed from its beginning to its end.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use enjambre_core::machine::simulated::Simulation;
use tokio::runtime::Builder;

use super::trace::Trace;
use super::world::World;

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

/// Runs the world of a seed on this thread; with `print` everything that happens goes to the standard output.
pub fn run(seed: u64, print: bool) -> Outcome {
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
            let mut world = World::new(seed, print);
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
