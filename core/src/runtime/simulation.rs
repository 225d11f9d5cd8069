//! Deterministic replacements of the sources of nondeterminism, for one thread.

use std::cell::RefCell;
use std::convert::Infallible;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::marker::PhantomData;

use rand::rngs::{StdRng, ThreadRng};
use rand::{Rng, SeedableRng, TryRng};

struct State {
    random: StdRng,
    salt: u64,
    counted: u64,
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// While this value exists, the functions of [`crate::runtime`] on its thread are deterministic.
#[derive(Debug)]
pub struct Simulation(PhantomData<*const ()>);

impl Simulation {
    /// Starts a simulation on this thread and replaces an earlier one.
    pub fn begin(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let salt = random.next_u64();
        STATE.with_borrow_mut(|state| *state = Some(State { random, salt, counted: 0 }));
        Self(PhantomData)
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        STATE.with_borrow_mut(|state| *state = None);
    }
}

pub(super) fn is_on() -> bool {
    STATE.with_borrow(Option::is_some)
}

pub(super) fn count() -> Option<u64> {
    STATE.with_borrow_mut(|state| {
        let state = state.as_mut()?;
        state.counted += 1;
        Some(state.counted)
    })
}

/// The random number generator of the simulation, or of the thread if there is none.
#[derive(Debug)]
pub enum Source {
    /// The generator of the simulation on this thread.
    Simulation,
    /// The generator of the thread.
    Thread(ThreadRng),
}

/// Returns the random number generator.
pub fn rng() -> Source {
    if is_on() { Source::Simulation } else { Source::Thread(rand::rng()) }
}

impl Source {
    fn with<T>(&mut self, draw: impl FnOnce(&mut dyn Rng) -> T) -> T {
        match self {
            Self::Thread(random) => draw(random),
            Self::Simulation => STATE.with_borrow_mut(|state| match state {
                Some(state) => draw(&mut state.random),
                None => draw(&mut rand::rng()),
            }),
        }
    }
}

impl TryRng for Source {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.with(|random| random.next_u32()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.with(|random| random.next_u64()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.with(|random| random.fill_bytes(bytes));
        Ok(())
    }
}

/// The hasher of a map: randomly keyed, or keyed by the seed of the simulation.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Random keys.
    Random(RandomState),
    /// The key of the simulation.
    Simulated(u64),
}

impl Default for Keys {
    fn default() -> Self {
        let salt = STATE.with_borrow(|state| state.as_ref().map(|state| state.salt));
        salt.map_or_else(|| Self::Random(RandomState::new()), Self::Simulated)
    }
}

impl BuildHasher for Keys {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        match self {
            Self::Random(keys) => keys.build_hasher(),
            Self::Simulated(salt) => {
                let mut hasher = DefaultHasher::new();
                hasher.write_u64(*salt);
                hasher
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{HashSet, spawn_blocking};

    async fn run() -> (Vec<u64>, Vec<u32>, std::thread::ThreadId) {
        let drawn = (0..10).map(|_| rng().next_u64()).collect();
        let set: HashSet<u32> = (0..100).collect();
        let thread = spawn_blocking(|| std::thread::current().id()).await.unwrap();
        (drawn, set.into_iter().collect(), thread)
    }

    #[tokio::test]
    async fn seed_determines_random_numbers_and_set_order() {
        let simulation = Simulation::begin(7);
        let first = run().await;
        assert_eq!(first.2, std::thread::current().id());
        drop(simulation);
        let other = run().await;
        assert!(first.0 != other.0 && first.1 != other.1 && first.2 != other.2);
        let _simulation = Simulation::begin(7);
        assert_eq!(run().await, first);
        let _simulation = Simulation::begin(8);
        assert_ne!(run().await, first);
    }
}
