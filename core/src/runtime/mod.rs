//! Sources of nondeterminism (random numbers, map order, blocking threads, number of cores) and helpers on top of tokio.
//!
//! With the feature `simulation`, a thread can derive all of them from a seed (`simulation::Simulation`), so that a run under
//! tokio's paused clock is reproducible. Without the feature they have no overhead.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::JoinHandle;

pub mod backoff;
pub mod buffers;
pub mod clock;
#[cfg(feature = "simulation")]
pub mod simulation;

#[cfg(feature = "simulation")]
pub use simulation::Keys;
/// The hasher of a map.
#[cfg(not(feature = "simulation"))]
pub type Keys = std::hash::RandomState;

/// A map with a reproducible iteration order in simulations.
pub type HashMap<K, V> = std::collections::HashMap<K, V, Keys>;
/// A set with a reproducible iteration order in simulations.
pub type HashSet<T> = std::collections::HashSet<T, Keys>;

/// Returns the random number generator.
#[cfg(not(feature = "simulation"))]
pub fn rng() -> rand::rngs::ThreadRng {
    rand::rng()
}

#[cfg(feature = "simulation")]
pub use simulation::rng;

/// Runs a blocking function on a blocking thread, or in a simulation as a task.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return tokio::spawn(async move { work() });
    }
    tokio::task::spawn_blocking(work)
}

/// Returns the number of cores, or 2 if it is unknown or in a simulation.
pub fn cores() -> usize {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return 2;
    }
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Returns the next number of a process-wide counter, or in a simulation of the simulation.
pub fn count(counter: &AtomicU64) -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(number) = simulation::count() {
        return number;
    }
    counter.fetch_add(1, Ordering::Relaxed)
}
