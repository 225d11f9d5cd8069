//! The copies that a tracker keeps: a peer inside the tracker, with a library of its own.
//!
//! The room is reserved in the catalogue when a pin is accepted, and unfinished pins are taken up again at the
//! start. For a folder only its list is reserved, since nobody knows more at that time; the room of its files is
//! reserved once the list is here. Nothing is kept of a file that is larger than it was said to be.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_core::announcer::Announcer;
use enjambre_core::catalogue::Catalogue;
use enjambre_core::catalogue::error::CatalogueError;
use enjambre_core::catalogue::pins::Pin;
use enjambre_core::clock::{Clock, SystemClock};
use enjambre_core::download::DownloadError;
use enjambre_core::download::get::{Get, get};
use enjambre_core::download::progress::Progress;
use enjambre_core::download::source::ProviderSource;
use enjambre_core::download::wanted::Wanted;
use enjambre_core::library::entry::Entry;
use enjambre_core::library::error::LibraryError;
use enjambre_core::library::library::Library;
use enjambre_core::library::output::Destination;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::FileId;
use enjambre_core::model::identity::{KeyPair, PublicKey};
use enjambre_core::model::record::{FileKind, FileRecord};
use enjambre_core::offering::{LibraryOffers, TrackerProviders};
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::seeder::Seeder;
use enjambre_core::storage::Role;
use enjambre_core::tracker::pin::PinStore;
use enjambre_core::tracker::presence::Presence;
use enjambre_core::tracker::trackers::Trackers;
use enjambre_core::transport::dialer::Dialer;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::failure::{Failure, Status};
use crate::peer::Shelf;
use crate::registry::{Place, Registry};

/// Files that are fetched at the same time; further ones wait.
const AT_ONCE: usize = 4;
/// Pins that are looked after at the same time; further ones are told to come again.
const MAX_FETCHES: usize = 10_000;
/// How long to wait after a fetch that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// The copies of a tracker.
#[derive(Debug)]
pub(super) struct Store {
    shelf: Shelf,
    quota: u64,
    catalogue: Arc<Catalogue>,
    providers: Arc<TrackerProviders>,
    presence: Mutex<Option<Arc<Presence>>>,
    trackers: Arc<Trackers>,
    key: KeyPair,
    endpoints: Vec<Endpoint>,
    fetches: Mutex<HashMap<FileId, Fetch>>,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    this: std::sync::Weak<Self>,
}

#[derive(Debug)]
struct Fetch {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Why it cannot succeed as things are.
    refusal: Option<ErrorReply>,
}

impl Store {
    /// Opens where the copies lie. With an `authority` they are fetched from members of its swarm only.
    pub(super) async fn open_shelf(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: &Path,
        dialer: &Arc<Dialer>,
        key: &KeyPair,
        authority: Option<PublicKey>,
    ) -> Result<Shelf, Failure> {
        let place = Place {
            data_dir: data_dir.join("store"),
            kind: NodeKind::Tracker,
            store: true,
            role: Role::Records,
            scratch: None,
        };
        Shelf::open(registry, loaded, place, dialer, key, authority).await
    }

    pub(super) fn new(
        loaded: &Loaded,
        shelf: Shelf,
        dialer: &Arc<Dialer>,
        key: &KeyPair,
        catalogue: &Arc<Catalogue>,
        listen: &[Endpoint],
    ) -> Arc<Self> {
        // A listener that means every address is dialled on loopback.
        let own = listen.iter().map(|endpoint| match endpoint.is_unspecified() {
            true => endpoint.with_address(IpAddr::from([127, 0, 0, 1])),
            false => endpoint.clone(),
        });
        let trackers = Arc::new(Trackers::new(dialer, own.take(1)));
        let advertise = &loaded.config.transport.advertise;
        let endpoints = if advertise.is_empty() { reachable(listen) } else { advertise.clone() };
        Arc::new_cyclic(|this| Self {
            shelf,
            quota: loaded.config.tracker.store.quota.get(),
            catalogue: Arc::clone(catalogue),
            providers: Arc::new(TrackerProviders(Arc::clone(&trackers))),
            presence: Mutex::default(),
            trackers,
            key: key.clone(),
            endpoints,
            fetches: Mutex::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            this: this.clone(),
        })
    }

    pub(super) fn seeder(&self) -> Arc<Seeder> {
        Arc::clone(&self.shelf.seeder)
    }

    fn library(&self) -> &Arc<Library> {
        &self.shelf.library
    }

    /// Offers what is here and goes on with unfinished pins. The tracker answers already.
    pub(super) fn start(self: &Arc<Self>) {
        let source = LibraryOffers::new(Arc::clone(self.library()), true);
        let members = self.shelf.members.clone();
        let (key, endpoints) = (self.key.clone(), self.endpoints.clone());
        let presence =
            Arc::new(Presence::start_in(members, key, endpoints, &self.trackers, Arc::new(source)));
        let announcer = Announcer::new(Arc::clone(self.library()), Arc::clone(&presence));
        *self.presence.lock() = Some(presence);
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(announcer.run()));
        let store = Arc::clone(self);
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(async move { store.resume().await }));
    }

    /// Clears away what is pinned no more, and goes on with what is not whole.
    async fn resume(&self) {
        for entry in self.library().entries() {
            // The end of a pin may have been cut short.
            if entry.name.is_some()
                && matches!(self.catalogue.pinned(&entry.id).await, Ok(None))
                && let Err(error) = self.discard(&entry.id).await
            {
                tracing::warn!(id = %entry.id, %error, "a copy that is pinned no more is still here");
            }
        }
        let mut after = None;
        loop {
            match self.catalogue.pins(after.as_ref()).await {
                Ok(pins) => {
                    let Some(last) = pins.last() else { return };
                    after = Some(last.id);
                    for pin in pins {
                        if self.is_whole(&pin.id).await && pin.held {
                            continue;
                        }
                        if pin.held
                            && let Err(error) = self.catalogue.set_held(&pin.id, false).await
                        {
                            tracing::warn!(id = %pin.id, %error, "a loss could not be noted");
                        }
                        while !self.begin(pin.id) {
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the pins could not be read; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether a file is here, or a folder with all of its files.
    async fn is_whole(&self, id: &FileId) -> bool {
        let library = self.library();
        let whole = |id: &FileId| library.entry(id).filter(Entry::is_complete);
        match whole(id).map(|entry| entry.kind) {
            None => false,
            Some(FileKind::File) => true,
            Some(FileKind::Collection) => library.collection(id).await.is_ok_and(|collection| {
                collection.members().iter().all(|member| whole(&member.id).is_some())
            }),
        }
    }

    /// Fetches a pinned file in the background, unless that is under way or was refused. False where too many are
    /// under way.
    fn begin(&self, id: FileId) -> bool {
        let Some(store) = self.this.upgrade() else { return true };
        let mut fetches = self.fetches.lock();
        if fetches.contains_key(&id) {
            return true;
        }
        if fetches.len() >= MAX_FETCHES {
            fetches.retain(|_, fetch| fetch.refusal.is_none());
            if fetches.len() >= MAX_FETCHES {
                return false;
            }
        }
        let stop = self.stop.child_token();
        let task = self.tasks.spawn({
            let stop = stop.clone();
            async move {
                // Whoever cancels it looks after the rest.
                let Some(result) = stop.run_until_cancelled(store.fetch(&id)).await else { return };
                if let Err(refusal) = &result {
                    tracing::warn!(%id, "a pinned file is not kept: {}", refusal.message);
                    store.give_up(&id).await;
                }
                let mut fetches = store.fetches.lock();
                match result {
                    Ok(()) => drop(fetches.remove(&id)),
                    Err(refusal) => {
                        if let Some(fetch) = fetches.get_mut(&id) {
                            fetch.refusal = Some(refusal);
                        }
                    }
                }
            }
        });
        fetches.insert(id, Fetch { stop, task, refusal: None });
        true
    }

    /// Takes a pin back and deletes what was fetched for it.
    async fn give_up(&self, id: &FileId) {
        let unpinned = self.catalogue.unpin(id).await.map(drop).map_err(|error| error.to_string());
        let removed = self.remove(id).await.map_err(|error| error.to_string());
        if let Err(error) = unpinned.and(removed) {
            tracing::warn!(%id, error, "a pin that cannot be kept could not be taken back");
        }
    }

    /// Fetches a file, however often it takes. Fails where it never will be kept.
    async fn fetch(&self, id: &FileId) -> Result<(), ErrorReply> {
        while !self.fetch_once(id).await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Tries once; says whether that was the end of it.
    async fn fetch_once(&self, id: &FileId) -> Result<bool, ErrorReply> {
        // Read anew each time: whoever publishes it again may have put its size right.
        let file = match self.catalogue.file(id, SystemClock.now_ms()).await {
            Ok(Some(file)) => file,
            Ok(None) => {
                return Err(ErrorReply::new(ErrorCode::NotFound, "nobody offers the file any more"));
            }
            Err(error) => {
                tracing::warn!(%id, %error, "a pin could not be looked up");
                return Ok(false);
            }
        };
        // Those that nobody offers at the moment do not stand in the way of the others.
        if !self.is_whole(id).await && !self.is_offered(id).await {
            return Ok(false);
        }
        let Ok(_slot) = self.slots.acquire().await else { return Ok(false) };
        let tried_again = |error: &DownloadError| {
            let failure = Failure::from_error(Status::Failed, error);
            tracing::warn!(%id, name = %file.name, "a pinned file is tried again: {failure}");
        };
        if file.kind == FileKind::File && !self.reserve(id, file.size).await? {
            return Ok(true);
        }
        let wanted = Wanted {
            id: *id,
            name: Some(file.name.clone()),
            kind: file.kind,
            member_of: None,
            claimed_size: Some(file.size),
            // It gets the room that it was said to need, and no more.
            proven_size: Some(file.size),
            destination: Destination::Library,
            announced_as: *id,
            providers: Arc::clone(&self.providers) as _,
        };
        if let Err(error) = self.shelf.downloader.get(wanted).wait().await {
            tried_again(&error);
            return Ok(false);
        }
        if file.kind == FileKind::Collection {
            let members = match self.library().collection(id).await {
                Ok(collection) => collection.total_size(),
                Err(error) => {
                    return Err(ErrorReply::new(ErrorCode::Malformed, error.to_string()));
                }
            };
            if !self.reserve(id, file.size.saturating_add(members)).await? {
                return Ok(true);
            }
        }
        let what = Get {
            id: *id,
            name: Some(file.name.clone()),
            kind: file.kind,
            size: file.size,
            output: None,
            force: false,
            durable: true,
        };
        let (progress, _seen) = watch::channel(Progress::default());
        let providers = Arc::clone(&self.providers) as _;
        if let Err(error) = get(&self.shelf.downloader, &what, providers, &progress).await {
            tried_again(&error);
            return Ok(false);
        }
        match self.catalogue.set_held(id, true).await {
            Ok(true) => tracing::info!(%id, name = %file.name, "a copy is kept"),
            // Unpinned by another tracker of this catalogue.
            Ok(false) => self.give_up(id).await,
            Err(error) => {
                tracing::warn!(%id, %error, "a copy could not be noted");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether anybody else offers the file.
    async fn is_offered(&self, id: &FileId) -> bool {
        let me = self.key.peer_id();
        self.providers.providers(id).await.is_ok_and(|found| found.iter().any(|each| each.peer != me))
    }

    /// Reserves room for a pin. False where there is no pin any more.
    async fn reserve(&self, id: &FileId, size: u64) -> Result<bool, ErrorReply> {
        loop {
            match self.catalogue.resize_pin(id, size, self.quota).await {
                Ok(pinned) => return Ok(pinned),
                Err(error @ CatalogueError::QuotaFull { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!(%id, %error, "room for a copy could not be noted"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Deletes a copy, unless a folder that is kept needs it.
    async fn remove(&self, id: &FileId) -> Result<(), LibraryError> {
        let library = self.library();
        for entry in library.entries() {
            let is_folder = entry.kind == FileKind::Collection && entry.name.is_some() && entry.id != *id;
            if is_folder
                && let Ok(collection) = library.collection(&entry.id).await
                && collection.members().iter().any(|member| member.id == *id)
            {
                return Ok(());
            }
        }
        match library.remove(id).await {
            Err(LibraryError::NotFound { .. }) => Ok(()),
            result => result,
        }
    }

    /// How many bytes of a file or folder are here.
    async fn have(&self, id: &FileId) -> u64 {
        let held = |id: &FileId| {
            self.library().entry(id).map_or(0, |entry| {
                let share = u128::from(entry.size) * u128::from(entry.have) / u128::from(entry.pieces.max(1));
                u64::try_from(share).unwrap_or(u64::MAX)
            })
        };
        let is_folder = self.library().entry(id).is_some_and(|entry| entry.kind == FileKind::Collection);
        let members = match self.library().collection(id).await {
            Ok(collection) if is_folder => collection.members().iter().map(|member| held(&member.id)).sum(),
            _ => 0,
        };
        held(id).saturating_add(members)
    }

    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        let presence = self.presence.lock().take();
        let leave = async {
            if let Some(presence) = presence {
                presence.leave().await;
            }
        };
        tokio::join!(leave, async {
            self.tasks.wait().await;
            self.shelf.close(false).await;
        });
    }
}

#[async_trait]
impl PinStore for Store {
    fn quota(&self) -> u64 {
        self.quota
    }

    async fn keep(&self, file: &FileRecord, pin: Pin) -> Result<u64, ErrorReply> {
        let refusal = {
            let mut fetches = self.fetches.lock();
            let refused = fetches.get(&file.id).is_some_and(|fetch| fetch.refusal.is_some());
            if refused { fetches.remove(&file.id).and_then(|fetch| fetch.refusal) } else { None }
        };
        if let Some(refusal) = refusal {
            // It was pinned anew by being asked for.
            self.give_up(&file.id).await;
            return Err(refusal);
        }
        let done = pin.held && self.is_whole(&file.id).await;
        if !done && !self.begin(file.id) {
            let busy = ErrorReply::new(ErrorCode::Busy, "too many copies are being fetched");
            return Err(busy.retry_after(PAUSE));
        }
        Ok(self.have(&file.id).await)
    }

    async fn discard(&self, id: &FileId) -> Result<(), ErrorReply> {
        let fetch = self.fetches.lock().remove(id);
        if let Some(Fetch { stop, task, .. }) = fetch {
            stop.cancel();
            // Otherwise it could begin anew what is removed here.
            let _ = task.await;
        }
        self.remove(id).await.map_err(|error| {
            tracing::warn!(%id, %error, "a copy could not be deleted");
            ErrorReply::new(ErrorCode::Storage, "the copy could not be deleted")
        })
    }
}

/// Where others reach the copies. The tracker sees its own store come from loopback, so an endpoint that means
/// every address gets the address from which this machine would reach others.
fn reachable(listen: &[Endpoint]) -> Vec<Endpoint> {
    let outward = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        // An address reserved for documentation (RFC 5737). Connecting a datagram socket sends nothing.
        socket.connect(("192.0.2.1", 9))?;
        Ok(socket.local_addr()?.ip())
    };
    let each = listen.iter().map(|endpoint| match outward() {
        Ok(address) if endpoint.is_unspecified() => {
            let told = endpoint.with_address(address);
            tracing::info!(
                "the copies of this tracker are offered at {told}; set transport.advertise to change that"
            );
            told
        }
        _ => endpoint.clone(),
    });
    each.collect()
}

#[cfg(test)]
mod tests;
