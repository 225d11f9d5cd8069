//! What the program gets from the machine beneath it: random numbers, the order of what is in a map, threads for work
//! that blocks, and the number of its cores.
//!
//! With the feature `simulation` one thread can have all of that follow from a seed (`simulated::Simulation`), so that
//! what happens on it under tokio's paused clock happens again in the same way. Without the feature nothing here costs
//! anything.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::JoinHandle;

#[cfg(feature = "simulation")]
pub mod simulated;

#[cfg(feature = "simulation")]
pub(crate) use simulated::Keys;
/// The keys of the hashes in a map.
#[cfg(not(feature = "simulation"))]
pub(crate) type Keys = std::hash::RandomState;

/// A map whose entries somebody goes through: in a simulation always in the same order.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, Keys>;
/// A set whose members somebody goes through: in a simulation always in the same order.
pub(crate) type HashSet<T> = std::collections::HashSet<T, Keys>;

/// The source of random numbers.
#[cfg(not(feature = "simulation"))]
pub(crate) fn rng() -> rand::rngs::ThreadRng {
    rand::rng()
}

#[cfg(feature = "simulation")]
pub(crate) use simulated::rng;

/// Runs what blocks away from the async workers. In a simulation it is a task among the others.
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(feature = "simulation")]
    if simulated::is_on() {
        return tokio::spawn(async move { work() });
    }
    tokio::task::spawn_blocking(work)
}

/// How many cores there are; 2 where that is not known, and in a simulation.
pub(crate) fn cores() -> usize {
    #[cfg(feature = "simulation")]
    if simulated::is_on() {
        return 2;
    }
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// The next number of a counter of the process. In a simulation that of the simulation.
pub(crate) fn count(counter: &AtomicU64) -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(number) = simulated::count() {
        return number;
    }
    counter.fetch_add(1, Ordering::Relaxed)
}
