//! Scratch places for `check` and `bench`, removed whatever happens but a `kill -9` and a backend that blocks.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use enjambre_core::storage::conformance::{self, Builder};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::{Role, Storage};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::output::{note, plain};
use crate::config::load::Loaded;
use crate::failure::{Failure, Status};
use crate::registry::{Place, Registry};
use crate::scratch::Scratch;

/// How long an opening under way may take to end, and a storage that is still open to close, before a place is removed.
const FAREWELL: Duration = Duration::from_secs(1);
/// A storage that was dropped may go on writing for a moment.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Opens the configured backend at scratch places.
pub(super) struct Trial<'a> {
    registry: &'a Registry,
    loaded: &'a Loaded,
    home: PathBuf,
    role: Role,
    made: Mutex<Vec<Made>>,
    /// How many openings are under way.
    openings: watch::Sender<usize>,
    stopped: AtomicBool,
}

struct Made {
    place: Place,
    opened: Vec<Weak<dyn Storage>>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(registry: &'a Registry, loaded: &'a Loaded, role: Role) -> Self {
        let home = loaded.data_dir(loaded.kind);
        // Without links, as a node that owns it sees it.
        let home = home.canonicalize().unwrap_or(home);
        let (made, openings, stopped) = (Mutex::default(), watch::Sender::default(), AtomicBool::new(false));
        Self { registry, loaded, home, role, made, openings, stopped }
    }

    /// The same scratch in another process, by its name. It is not removed here.
    pub(super) fn of_another(&self, name: &str) -> Option<Place> {
        Some(Place::scratch(Scratch::of(&self.home, name)?, self.loaded.kind, self.role))
    }

    /// Works until it is done, or until the program is to stop; then nothing is open any more.
    pub(super) async fn run<T>(&self, stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        if let Some(done) = stop.run_until_cancelled(&mut work).await {
            return Some(done);
        }
        self.stopped.store(true, Ordering::Release);
        // An opening that is given up may go on in a thread, and make files where they were just removed.
        let mut openings = self.openings.subscribe();
        let settled = tokio::time::timeout(FAREWELL, openings.wait_for(|openings| *openings == 0));
        tokio::select! {
            _ = &mut work => {}
            _ = settled => {}
        }
        let made: Vec<_> = self.made.lock().iter().flat_map(|made| made.opened.clone()).collect();
        for storage in made.iter().filter_map(Weak::upgrade) {
            let _ = tokio::time::timeout(FAREWELL, storage.close()).await;
        }
        None
    }

    /// Removes every place made so far.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let made = std::mem::take(&mut *self.made.lock());
        for Made { place, .. } in made {
            let mut removed = self.registry.remove_scratch(self.loaded, place.clone()).await;
            for _ in 1..ATTEMPTS {
                if removed.is_ok() {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
                removed = self.registry.remove_scratch(self.loaded, place.clone()).await;
            }
            outcome = outcome.and(removed);
        }
        outcome
    }
}

impl Builder for Trial<'_> {
    type Place = Place;

    fn place(&self) -> Place {
        let place = Place::scratch(Scratch::new(&self.home), self.loaded.kind, self.role);
        self.made.lock().push(Made { place: place.clone(), opened: Vec::new() });
        place
    }

    async fn open(&self, place: &Place) -> Result<Arc<dyn Storage>, StorageError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(StorageError::Closed);
        }
        self.openings.send_modify(|openings| *openings += 1);
        let opened = self.registry.try_open_storage(self.loaded, place.clone()).await;
        self.openings.send_modify(|openings| *openings -= 1);
        let opened = opened.map_err(|failure| StorageError::backend("open the storage", failure.message))?;
        let storage = opened.map_err(|error| match error.downcast::<StorageError>() {
            Ok(error) => *error,
            Err(error) => StorageError::backend("open the storage", error),
        })?;
        if let Some(made) = self.made.lock().iter_mut().find(|made| made.place == *place) {
            made.opened.retain(|opened| opened.strong_count() > 0);
            made.opened.push(Arc::downgrade(&storage));
        }
        Ok(storage)
    }

    fn blocked(failure: &conformance::Failure) -> ! {
        let told: Vec<String> = failure.to_string().lines().map(plain).collect();
        note(&told.join("\n"));
        note("the command ends, because nothing else ends such a call; its scratch place is left behind");
        std::process::exit(Status::Failed as i32)
    }
}
