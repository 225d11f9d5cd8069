//! A machine that follows from a seed, for one thread at a time.

use std::cell::RefCell;
use std::convert::Infallible;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::marker::PhantomData;

use rand::rngs::{StdRng, ThreadRng};
use rand::{Rng, SeedableRng, TryRng};

struct Machine {
    random: StdRng,
    salt: u64,
    counted: u64,
}

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// While this lives, everything on its thread that asks the machine gets what follows from the seed.
#[derive(Debug)]
pub struct Simulation(PhantomData<*const ()>);

impl Simulation {
    /// Begins on this thread; one that was under way there ends.
    pub fn begin(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let salt = random.next_u64();
        MACHINE.with_borrow_mut(|machine| *machine = Some(Machine { random, salt, counted: 0 }));
        Self(PhantomData)
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        MACHINE.with_borrow_mut(|machine| *machine = None);
    }
}

pub(super) fn is_on() -> bool {
    MACHINE.with_borrow(Option::is_some)
}

pub(super) fn count() -> Option<u64> {
    MACHINE.with_borrow_mut(|machine| {
        let machine = machine.as_mut()?;
        machine.counted += 1;
        Some(machine.counted)
    })
}

/// The simulation's random numbers, or those of the thread where there is none.
#[derive(Debug)]
pub(crate) enum Source {
    Simulation,
    Thread(ThreadRng),
}

pub(crate) fn rng() -> Source {
    if is_on() { Source::Simulation } else { Source::Thread(rand::rng()) }
}

impl Source {
    fn with<T>(&mut self, draw: impl FnOnce(&mut dyn Rng) -> T) -> T {
        match self {
            Self::Thread(random) => draw(random),
            Self::Simulation => MACHINE.with_borrow_mut(|machine| match machine {
                Some(machine) => draw(&mut machine.random),
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

/// The keys of the hashes in a map: random ones, or in a simulation its own.
#[derive(Debug, Clone)]
pub(crate) enum Keys {
    Random(RandomState),
    Simulated(u64),
}

impl Default for Keys {
    fn default() -> Self {
        let salt = MACHINE.with_borrow(|machine| machine.as_ref().map(|machine| machine.salt));
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
    use crate::machine::{HashSet, spawn_blocking};

    async fn run() -> (Vec<u64>, Vec<u32>, std::thread::ThreadId) {
        let drawn = (0..10).map(|_| rng().next_u64()).collect();
        let set: HashSet<u32> = (0..100).collect();
        let thread = spawn_blocking(|| std::thread::current().id()).await.unwrap();
        (drawn, set.into_iter().collect(), thread)
    }

    #[tokio::test]
    async fn a_seed_decides_what_is_drawn_and_the_order_in_a_set_and_nothing_leaves_the_thread() {
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
