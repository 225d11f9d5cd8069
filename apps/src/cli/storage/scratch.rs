//! Temporary databases for `check` and `bench`. They are removed unless the process is killed or a backend blocks.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use enjambre_control::{Failure, Status};
use enjambre_core::{Place, Role, Scratch, Storage, StorageError, Tenancy};
use enjambre_testkit::storage::{self, Builder};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::access::user_name;
use crate::cli::output::notice;
use crate::config::load::Loaded;
use crate::data_dir::other_owner;
use crate::registry::Registry;
use crate::registry::locations::{node_place, scratch_place};

/// Maximum time to wait for a pending open, and for the close of an open storage, before a place is removed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of attempts to remove a place. A storage that was dropped can continue to write for a moment.
const MAX_ATTEMPTS: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Opens the configured backend in scratch places.
pub(super) struct ScratchBuilder<'a> {
    registry: &'a Registry,
    loaded: &'a Loaded,
    home: PathBuf,
    role: Role,
    created: Mutex<Vec<Created>>,
    /// Number of pending opens.
    opening: watch::Sender<usize>,
    stopped: AtomicBool,
}

struct Created {
    place: Place,
    opened: Vec<Weak<dyn Storage>>,
}

impl<'a> ScratchBuilder<'a> {
    pub(super) fn new(registry: &'a Registry, loaded: &'a Loaded, role: Role) -> Self {
        let home = loaded.data_dir(loaded.kind);
        // Canonical, like the path of a locked data directory.
        let home = home.canonicalize().unwrap_or(home);
        let (created, opening, stopped) =
            (Mutex::default(), watch::Sender::default(), AtomicBool::new(false));
        Self { registry, loaded, home, role, created, opening, stopped }
    }

    /// Returns the place of another process by its name. This builder does not remove it.
    pub(super) fn place_of_other_process(&self, name: &str) -> Option<Place> {
        Some(scratch_place(self.loaded.kind, Scratch::open(&self.home, name)?))
    }

    /// Runs `work` until it completes or `stop` is cancelled, and removes all places.
    pub(super) async fn run<T>(
        &self,
        stop: &CancellationToken,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if let Some(owner) = other_owner(&self.home) {
            let (path, owner) = (self.home.display(), user_name(owner));
            return Err(Failure::failed(format!(
                "{path} belongs to user {owner}; run the command as that user"
            )));
        }
        let place = node_place(self.loaded.kind, &self.home);
        self.registry.check_files(self.loaded, place, self.role).await?;
        let outcome = self.run_until_stopped(stop, work).await;
        let removed = self.remove().await;
        let value = outcome.unwrap_or_else(|| Err(Failure::interrupted("interrupted")))?;
        removed.map(|()| value)
    }

    /// Returns `None` if `stop` was cancelled. All storages are closed then.
    async fn run_until_stopped<T>(
        &self,
        stop: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        if let Some(outcome) = stop.run_until_cancelled(&mut work).await {
            return Some(outcome);
        }
        self.stopped.store(true, Ordering::Release);
        // A pending open can continue in a thread and create files again after their removal.
        let mut opening = self.opening.subscribe();
        let settled = tokio::time::timeout(CLOSE_TIMEOUT, opening.wait_for(|pending| *pending == 0));
        tokio::select! {
            _ = &mut work => {}
            _ = settled => {}
        }
        let opened: Vec<_> = self.created.lock().iter().flat_map(|created| created.opened.clone()).collect();
        for storage in opened.iter().filter_map(Weak::upgrade) {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, storage.close()).await;
        }
        None
    }

    async fn remove(&self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let created = std::mem::take(&mut *self.created.lock());
        for Created { place, .. } in created {
            let remove = || self.registry.remove_scratch(self.loaded, place.clone(), self.role);
            let mut removed = remove().await;
            for _ in 1..MAX_ATTEMPTS {
                if removed.is_ok() {
                    break;
                }
                tokio::time::sleep(RETRY_DELAY).await;
                removed = remove().await;
            }
            outcome = outcome.and(removed);
        }
        outcome
    }
}

impl Builder for ScratchBuilder<'_> {
    type Place = Place;

    fn place(&self) -> Place {
        let place = scratch_place(self.loaded.kind, Scratch::new(&self.home));
        self.created.lock().push(Created { place: place.clone(), opened: Vec::new() });
        place
    }

    async fn open(&self, place: &Place) -> Result<Arc<dyn Storage>, StorageError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(StorageError::Closed);
        }
        self.opening.send_modify(|pending| *pending += 1);
        let opened = self.registry.try_open_storage(self.loaded, place.clone(), self.role).await;
        self.opening.send_modify(|pending| *pending -= 1);
        let opened = opened.map_err(|failure| StorageError::backend("open the storage", failure.message))?;
        let storage = opened.map_err(|error| match error.downcast::<StorageError>() {
            Ok(error) => *error,
            Err(error) => StorageError::backend("open the storage", error),
        })?;
        if let Some(created) = self.created.lock().iter_mut().find(|created| created.place == *place) {
            created.opened.retain(|opened| opened.strong_count() > 0);
            created.opened.push(Arc::downgrade(&storage));
        }
        Ok(storage)
    }

    fn is_shared(&self, place: &Place) -> bool {
        place.tenancy == Tenancy::Shared
    }

    fn blocked(failure: &storage::Failure) -> ! {
        failure.to_string().lines().for_each(notice);
        notice(
            "error: a call of the backend is blocked and cannot be cancelled; the temporary database is not removed",
        );
        std::process::exit(Status::Failed as i32)
    }
}
