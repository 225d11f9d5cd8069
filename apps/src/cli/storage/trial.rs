//! Scratch places for `check` and `bench`, removed whatever happens but a `kill -9`.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use enjambre_core::storage::conformance::Builder;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::{Role, Storage};
use parking_lot::Mutex;

use crate::config::load::Loaded;
use crate::failure::Failure;
use crate::registry::{Place, Registry};
use crate::scratch::Scratch;

/// How long a storage that is still open may take to close before its place is removed.
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
        Self { registry, loaded, home, role, made: Mutex::default() }
    }

    /// The same scratch in another process, by its name. It is not removed here.
    pub(super) fn of_another(&self, name: &str) -> Option<Place> {
        Some(Place::scratch(Scratch::of(&self.home, name)?, self.loaded.kind, self.role))
    }

    /// Closes what is open and removes every place made so far.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let made = std::mem::take(&mut *self.made.lock());
        for Made { place, opened } in made {
            for storage in opened.iter().filter_map(Weak::upgrade) {
                let _ = tokio::time::timeout(FAREWELL, storage.close()).await;
            }
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
        let opened = self.registry.try_open_storage(self.loaded, place.clone()).await;
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
}
