//! Sources of nondeterminism (random numbers, map order, blocking threads, number of cores) and helpers on top of tokio.
//!
//! With the feature `simulation`, a thread can derive all of them from a seed (`simulation::Simulation`), so that a run under
//! tokio's paused clock is reproducible. Without the feature they have no overhead.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::task::TaskTracker;

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

/// Spawns a task, like [`tokio::spawn`]. Tokio's code for a type of task has several KiB, so tasks have one type per type of
/// result instead of one per caller.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task.boxed())
}

/// Same as [`spawn`], tracked by `tasks`.
pub fn spawn_in<T: Send + 'static>(
    tasks: &TaskTracker,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tasks.spawn(task.boxed())
}

/// Runs a blocking function on a blocking thread, or in a simulation as a task. It starts at once and runs to its end even
/// if the returned future is dropped.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, JoinError>> + Send {
    result_of(spawn_any(Box::new(|| Box::new(work()))))
}

type AnyResult = Box<dyn Any + Send>;

/// All blocking functions are tasks of this type, for the same reason as in [`spawn`].
fn spawn_any(work: Box<dyn FnOnce() -> AnyResult + Send>) -> JoinHandle<AnyResult> {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return tokio::spawn(async move { work() });
    }
    tokio::task::spawn_blocking(work)
}

async fn result_of<T: 'static>(task: JoinHandle<AnyResult>) -> Result<T, JoinError> {
    Ok(*task.await?.downcast().expect("the function returns a `T`"))
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
