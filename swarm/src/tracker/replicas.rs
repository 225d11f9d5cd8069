//! The replicas of a tracker: copies of pinned files, fetched and served by a peer inside the tracker.
//!
//! The size of a file is a claim until content proves it, so a pin reserves space in the catalogue as content arrives. A
//! pin for which nothing arrives expires. The peers that pin files take turns to download, and a download that stalls ends
//! its turn. Pins of one file share its replica, which is deleted with the last of them. Incomplete pins are resumed at the
//! start.

mod fetch;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pin_store::PinStore;
use crate::catalogue::Catalogue;
use crate::catalogue::layout::{PinId, PinRecord};
use crate::download::downloader::Downloader;
use crate::library::entry::Entry;
use crate::library::error::LibraryError;
use crate::library::library::Library;
use crate::membership::members::Members;
use crate::peer::announcer::Announcer;
use crate::peer::offers::LibraryOffers;
use crate::rate_limit::turns::Turns;
use crate::tracker_client::presence::Presence;
use crate::tracker_client::trackers::Trackers;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::runtime;
use enjambre_core::runtime::clock::Clock;
use enjambre_core::storage::inspect::with_causes;
use enjambre_core::{Endpoint, FileId, FileKind, KeyPair, Member, PeerId};

/// Maximum number of files that are downloaded in parallel.
const MAX_DOWNLOADS: usize = 4;
/// The number of these that one peer pinned.
const MAX_DOWNLOADS_PER_PEER: usize = MAX_DOWNLOADS / 2;
/// Maximum number of pending pins. Further pins get the reply `busy`.
const MAX_FETCHES: usize = 10_000;
/// One peer may have this part of the pending pins that others leave free, at least one. Keys cost little, so the part is
/// small.
const FETCHES_PART: usize = 100;
/// Time between attempts to fetch a file, at first.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The parts of a [`ReplicaStore`].
#[derive(Debug)]
pub struct ReplicaParts {
    /// Fetches the replicas into its library.
    pub downloader: Arc<Downloader>,
    /// The membership state, in an invite-only swarm.
    pub members: Option<Arc<Members>>,
    /// The catalogue with the pins.
    pub catalogue: Arc<Catalogue>,
    /// The tracker itself, as a client.
    pub trackers: Arc<Trackers>,
    /// The key of the tracker, under which it announces the replicas.
    pub key: KeyPair,
    /// The endpoints at which the replicas are offered.
    pub endpoints: Vec<Endpoint>,
    /// The clock of the catalogue.
    pub clock: Arc<dyn Clock>,
}

/// Stores replicas of pinned files.
#[derive(Debug)]
pub struct ReplicaStore {
    parts: ReplicaParts,
    quota: u64,
    presence: Mutex<Option<Arc<Presence>>>,
    fetches: Mutex<Fetches>,
    /// Read while a pin is added or completed, and written while one is removed, so that no replica is deleted that another
    /// pin needs.
    pins: RwLock<()>,
    /// The downloads, by the peer that pinned the file.
    downloads: Turns<PeerId>,
    tasks: TaskTracker,
    stop: CancellationToken,
    this: Weak<Self>,
}

type Fetches = HashMap<PinId, Fetch>;

#[derive(Debug)]
struct Fetch {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Set if the file cannot be stored.
    refusal: Option<ErrorReply>,
}

impl ReplicaStore {
    /// Creates a store that reserves at most `quota` bytes.
    pub fn new(parts: ReplicaParts, quota: u64) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            quota,
            parts,
            presence: Mutex::default(),
            fetches: Mutex::default(),
            pins: RwLock::default(),
            downloads: Turns::new(MAX_DOWNLOADS, MAX_DOWNLOADS_PER_PEER),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            this: this.clone(),
        })
    }

    /// Returns the number of pins whose replica is not complete yet.
    pub fn incomplete_pins(&self) -> usize {
        self.fetches.lock().values().filter(|fetch| fetch.refusal.is_none()).count()
    }

    fn library(&self) -> &Arc<Library> {
        self.parts.downloader.library()
    }

    /// Announces the replicas and resumes incomplete pins. The tracker must be serving requests.
    pub fn start(self: &Arc<Self>) {
        let source = Arc::new(LibraryOffers::new(Arc::clone(self.library()), true));
        let ReplicaParts { members, key, endpoints, trackers, .. } = &self.parts;
        let presence = Presence::start(members.clone(), key.clone(), endpoints.clone(), trackers, source);
        let presence = Arc::new(presence);
        let announcer = Announcer::new(Arc::clone(self.library()), Arc::clone(&presence));
        *self.presence.lock() = Some(presence);
        runtime::spawn_in(&self.tasks, self.stop.clone().run_until_cancelled_owned(announcer.run()));
        let store = Arc::clone(self);
        let resume = async move { store.resume().await };
        runtime::spawn_in(&self.tasks, self.stop.clone().run_until_cancelled_owned(resume));
    }

    /// Ends the session at the tracker.
    pub async fn leave(&self) {
        let presence = self.presence.lock().take();
        if let Some(presence) = presence {
            presence.leave().await;
        }
    }

    /// Stops all fetches and waits for them. The library and the downloader stay open.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Deletes unpinned replicas and fetches incomplete ones.
    async fn resume(&self) {
        self.remove_unpinned().await;
        let mut after = None;
        loop {
            match self.parts.catalogue.durable_pins(after.as_ref()).await {
                Ok(pins) => {
                    let Some(last) = pins.last() else { return };
                    after = Some(last.0);
                    for (id, pin) in pins {
                        self.resume_pin(id, &pin).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "reading pins failed; will retry");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Deletes replicas that remain after a crash during `unpin`.
    async fn remove_unpinned(&self) {
        for entry in self.library().entries() {
            if entry.name.is_none() {
                continue;
            }
            let _guard = self.pins.write().await;
            if matches!(self.parts.catalogue.reserved_for(&entry.id).await, Ok(pinned) if pinned.pins == 0)
                && let Err(error) = self.remove(&entry.id).await
            {
                tracing::warn!(id = %entry.id, error = with_causes(&error), "deleting an unpinned replica failed");
            }
        }
    }

    async fn resume_pin(&self, id: PinId, pin: &PinRecord) {
        if pin.complete {
            if self.is_complete(&id.file).await {
                return;
            }
            if let Err(error) = self.parts.catalogue.set_complete(&id, false).await {
                tracing::warn!(id = %id.file, %error, "marking a replica as incomplete failed");
            }
        }
        // It was admitted when the peer pinned the file.
        while !self.start_fetch(id, |fetches| fetches.len() < MAX_FETCHES) {
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Whether a file, or a collection with all of its members, is stored.
    async fn is_complete(&self, id: &FileId) -> bool {
        let library = self.library();
        let complete = |id: &FileId| library.entry(id).filter(Entry::is_complete);
        match complete(id).map(|entry| entry.kind) {
            None => false,
            Some(FileKind::File | FileKind::Executable) => true,
            Some(FileKind::Collection) => library.collection(id).await.is_ok_and(|collection| {
                // Otherwise a member that was fetched for itself could be deleted while the collection needs it.
                let is_kept = |member: &FileId| library.collections_of(member).contains(id);
                let is_stored = |member: &Member| complete(&member.id).is_some() && is_kept(&member.id);
                collection.members().iter().all(is_stored)
            }),
        }
    }

    /// Fetches a pinned file in the background, unless that is pending or was refused. Returns `false` if the pending fetches
    /// do not admit it.
    fn start_fetch(&self, id: PinId, admits: impl Fn(&Fetches) -> bool) -> bool {
        let Some(store) = self.this.upgrade() else { return true };
        let mut fetches = self.fetches.lock();
        if fetches.contains_key(&id) {
            return true;
        }
        if !admits(&fetches) {
            // Recorded refusals count. Those of other peers are kept while there is space for them.
            let is_full = fetches.len() >= MAX_FETCHES;
            fetches.retain(|other, fetch| fetch.refusal.is_none() || (other.by != id.by && !is_full));
            if !admits(&fetches) {
                return false;
            }
        }
        let stop = self.stop.child_token();
        let task = runtime::spawn_in(&self.tasks, {
            let stop = stop.clone();
            async move {
                // `unpin` and `stop` cancel the fetch and clean up themselves.
                let Some(result) = stop.run_until_cancelled(store.fetch(&id)).await else { return };
                store.finish_fetch(&id, result).await;
            }
        });
        fetches.insert(id, Fetch { stop, task, refusal: None });
        true
    }

    async fn finish_fetch(&self, id: &PinId, result: Result<(), ErrorReply>) {
        if let Err(refusal) = &result {
            let PinId { file, by } = id;
            let by = by.short();
            tracing::warn!(id = %file, %by, reason = refusal.message, "pin removed: the file cannot be stored");
            self.give_up(id).await;
        }
        let mut fetches = self.fetches.lock();
        match result {
            Ok(()) => drop(fetches.remove(id)),
            Err(refusal) => {
                if let Some(fetch) = fetches.get_mut(id) {
                    fetch.refusal = Some(refusal);
                }
            }
        }
    }

    /// Removes a pin whose file cannot be stored.
    async fn give_up(&self, id: &PinId) {
        if let Err(error) = self.release(id).await {
            tracing::warn!(id = %id.file, error = error.message, "removing a pin failed");
        }
    }

    /// Removes a pin that is not being fetched, and first the replica if no other pin needs it: the space is only released
    /// once the replica is deleted.
    async fn release(&self, id: &PinId) -> Result<(), ErrorReply> {
        let catalogue = &self.parts.catalogue;
        let _guard = self.pins.write().await;
        let own = u64::from(catalogue.pinned(id).await?.is_some());
        if catalogue.reserved_for(&id.file).await?.pins == own {
            self.remove(&id.file).await.map_err(|error| {
                tracing::warn!(id = %id.file, error = with_causes(&error), "deleting a replica failed");
                ErrorReply::new(ErrorCode::Storage, "deleting the replica failed")
            })?;
        }
        catalogue.unpin(id).await?;
        Ok(())
    }

    /// Stops fetching a file for a pin.
    async fn stop_fetch(&self, id: &PinId) {
        let fetch = self.fetches.lock().remove(id);
        if let Some(Fetch { stop, task, .. }) = fetch {
            stop.cancel();
            // A running fetch could recreate the replica.
            let _ = task.await;
        }
    }

    /// Deletes a replica. A member of a stored collection only loses its name.
    async fn remove(&self, id: &FileId) -> Result<(), LibraryError> {
        let library = self.library();
        if library.entry(id).is_some_and(|entry| entry.name.is_none()) {
            return Ok(());
        }
        match library.remove(id).await {
            Err(LibraryError::NotFound { .. }) => Ok(()),
            result => result,
        }
    }

    /// Returns the stored bytes of a file or collection.
    async fn stored_bytes(&self, id: &FileId) -> u64 {
        let library = self.library();
        let stored = |id: &FileId| library.entry(id).map_or(0, |entry| entry.stored_bytes());
        let is_collection = library.entry(id).is_some_and(|entry| entry.kind == FileKind::Collection);
        let members = match library.collection(id).await {
            Ok(collection) if is_collection => {
                collection.members().iter().map(|member| stored(&member.id)).sum()
            }
            _ => 0,
        };
        stored(id).saturating_add(members)
    }
}

#[async_trait]
impl PinStore for ReplicaStore {
    fn quota(&self) -> u64 {
        self.quota
    }

    async fn pin(&self, id: &PinId) -> Result<(u64, bool), ErrorReply> {
        let (is_pending, refusal) = {
            let mut fetches = self.fetches.lock();
            let is_refused = fetches.get(id).is_some_and(|fetch| fetch.refusal.is_some());
            let refusal = if is_refused { fetches.remove(id).and_then(|fetch| fetch.refusal) } else { None };
            (fetches.contains_key(id), refusal)
        };
        if let Some(refusal) = refusal {
            // Its removal may have failed.
            self.give_up(id).await;
            return Err(refusal);
        }
        let (catalogue, now) = (&self.parts.catalogue, self.parts.clock.now());
        let pending = if is_pending { catalogue.pinned(id).await? } else { None };
        let pin = match pending {
            // It is durable already, so a peer that waits for the replica causes no syncs.
            Some(pin) => pin,
            None => {
                let _guard = self.pins.read().await;
                catalogue.pin(id, now).await?
            }
        };
        let completed = match pin.complete {
            true => Ok(self.is_complete(&id.file).await),
            false => self.complete(id).await,
        };
        let is_complete = match completed {
            Ok(is_complete) => is_complete,
            Err(refusal) => {
                self.stop_fetch(id).await;
                self.give_up(id).await;
                return Err(refusal);
            }
        };
        if !is_complete && !self.start_fetch(*id, |fetches| has_share(fetches, id.by)) {
            // Refused pins must not accumulate.
            if pin.at == now {
                self.give_up(id).await;
            }
            let busy = ErrorReply::new(ErrorCode::Busy, "too many pins are pending, especially of this peer");
            return Err(busy.retry_after(RETRY_INTERVAL));
        }
        Ok((self.stored_bytes(&id.file).await, is_complete))
    }

    async fn unpin(&self, id: &PinId) -> Result<(), ErrorReply> {
        self.stop_fetch(id).await;
        self.release(id).await
    }
}

/// Whether the peer may have another pending pin.
fn has_share(fetches: &Fetches, by: PeerId) -> bool {
    let own = fetches.keys().filter(|id| id.by == by).count();
    let free = MAX_FETCHES.saturating_sub(fetches.len());
    own < (free + own).div_ceil(FETCHES_PART)
}
