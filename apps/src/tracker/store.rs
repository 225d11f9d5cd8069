//! The copies that a tracker keeps: a peer inside the tracker, with a library of its own.
//!
//! The room is reserved in the catalogue when a pin is accepted, and unfinished pins are taken up again at the
//! start. For a folder only its list is reserved, since nobody knows more at that time; whether its files fit is
//! checked once the list is here.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_core::catalogue::Catalogue;
use enjambre_core::catalogue::pins::Pin;
use enjambre_core::download::downloader::Wanted;
use enjambre_core::download::get::{Get, get};
use enjambre_core::download::progress::Progress;
use enjambre_core::library::library::Library;
use enjambre_core::library::output::Destination;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::FileId;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::model::record::{FileKind, FileRecord};
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::seeder::Seeder;
use enjambre_core::storage::Role;
use enjambre_core::tracker::clock::{Clock, SystemClock};
use enjambre_core::tracker::pin::PinStore;
use enjambre_core::tracker::presence::Presence;
use enjambre_core::tracker::trackers::Trackers;
use enjambre_core::transport::dialer::Dialer;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::failure::{Failure, Status};
use crate::peer::Shelf;
use crate::peer::announcer::Announcer;
use crate::peer::offers::{LibraryOffers, TrackerProviders};
use crate::registry::{Place, Registry};

/// Files that are fetched at the same time; further ones wait.
const AT_ONCE: usize = 4;
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
    /// Why it cannot succeed as things are.
    refusal: Option<ErrorReply>,
}

impl Store {
    pub(super) async fn open(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: &Path,
        dialer: &Arc<Dialer>,
        key: &KeyPair,
        catalogue: &Arc<Catalogue>,
        listen: Vec<Endpoint>,
    ) -> Result<Arc<Self>, Failure> {
        let place = Place {
            data_dir: data_dir.join("store"),
            kind: NodeKind::Tracker,
            store: true,
            role: Role::Records,
        };
        let shelf = Shelf::open(registry, loaded, place, dialer, key).await?;
        // A listener that means every address is dialled on loopback.
        let own = listen.iter().map(|endpoint| match endpoint.is_unspecified() {
            true => endpoint.with_address(IpAddr::from([127, 0, 0, 1])),
            false => endpoint.clone(),
        });
        let trackers = Arc::new(Trackers::new(dialer, own.take(1)));
        let advertise = &loaded.config.transport.advertise;
        let endpoints = if advertise.is_empty() { reachable(&listen) } else { advertise.clone() };
        Ok(Arc::new_cyclic(|this| Self {
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
        }))
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
        let presence =
            Presence::start(self.key.clone(), self.endpoints.clone(), &self.trackers, Arc::new(source));
        let presence = Arc::new(presence);
        let announcer = Announcer::new(Arc::clone(self.library()), Arc::clone(&presence));
        *self.presence.lock() = Some(presence);
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(announcer.run()));
        let store = Arc::clone(self);
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(async move { store.resume().await }));
    }

    async fn resume(&self) {
        let mut after = None;
        loop {
            match self.catalogue.pins(after.as_ref()).await {
                Ok(pins) => {
                    let Some(last) = pins.last() else { return };
                    after = Some(last.id);
                    for pin in pins {
                        let whole = self.library().entry(&pin.id).is_some_and(|entry| entry.is_complete());
                        if pin.held && whole {
                            continue;
                        }
                        match self.catalogue.file(&pin.id, SystemClock.now_ms()).await {
                            Ok(Some(file)) => self.begin(&file),
                            Ok(None) => {}
                            Err(error) => tracing::warn!(id = %pin.id, %error, "a pin could not be read"),
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

    fn begin(&self, file: &FileRecord) {
        let Some(store) = self.this.upgrade() else { return };
        let mut fetches = self.fetches.lock();
        if fetches.get(&file.id).is_some_and(|fetch| fetch.refusal.is_none()) {
            return;
        }
        let stop = self.stop.child_token();
        fetches.insert(file.id, Fetch { stop: stop.clone(), refusal: None });
        let file = file.clone();
        self.tasks.spawn(async move {
            let refusal = stop.run_until_cancelled(store.fetch(&file)).await.and_then(Result::err);
            let mut fetches = store.fetches.lock();
            match refusal {
                Some(refusal) => {
                    tracing::warn!(id = %file.id, name = %file.name, "a pinned file is not kept: {}", refusal.message);
                    if let Some(fetch) = fetches.get_mut(&file.id) {
                        fetch.refusal = Some(refusal);
                    }
                }
                None => {
                    fetches.remove(&file.id);
                }
            }
        });
    }

    /// Fetches a file, however often it takes. Fails where it never will be kept.
    async fn fetch(&self, file: &FileRecord) -> Result<(), ErrorReply> {
        loop {
            let slot = self.slots.acquire().await;
            if file.kind == FileKind::Collection {
                self.check_room(file).await?;
            }
            let what = Get {
                id: file.id,
                name: Some(file.name.clone()),
                kind: file.kind,
                size: file.size,
                output: None,
                force: false,
                durable: true,
            };
            let (progress, _seen) = watch::channel(Progress::default());
            let providers = Arc::clone(&self.providers) as _;
            match get(&self.shelf.downloader, &what, providers, &progress).await {
                Ok(_) => match self.catalogue.set_held(&file.id, true).await {
                    Ok(true) => {
                        tracing::info!(id = %file.id, name = %file.name, "a copy is kept");
                        return Ok(());
                    }
                    // Unpinned meanwhile; `discard` deletes it.
                    Ok(false) => return Ok(()),
                    Err(error) => tracing::warn!(id = %file.id, %error, "a copy could not be noted"),
                },
                Err(error) => {
                    let failure = Failure::from_error(Status::Failed, &*error);
                    tracing::warn!(id = %file.id, name = %file.name, "a pinned file is tried again: {failure}");
                }
            }
            drop(slot);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Fetches the list of a folder and sees whether its files have room.
    async fn check_room(&self, file: &FileRecord) -> Result<(), ErrorReply> {
        let wanted = Wanted {
            id: file.id,
            name: Some(file.name.clone()),
            kind: file.kind,
            member_of: None,
            claimed_size: Some(file.size),
            proven_size: None,
            destination: Destination::Library,
            announced_as: file.id,
            providers: Arc::clone(&self.providers) as _,
        };
        if self.shelf.downloader.get(wanted).wait().await.is_err() {
            // The fetch itself says why, and tries again.
            return Ok(());
        }
        let Ok(collection) = self.library().collection(&file.id).await else { return Ok(()) };
        let members: std::collections::HashSet<_> =
            collection.members().iter().map(|member| member.id).collect();
        let others = self.library().entries().into_iter().filter(|entry| !members.contains(&entry.id));
        let taken: u64 = others.map(|entry| entry.size).fold(0, u64::saturating_add);
        if taken.saturating_add(collection.total_size()) <= self.quota {
            return Ok(());
        }
        let message = format!(
            "the folder has {} bytes, and of the quota of {} bytes {taken} are taken",
            collection.total_size(),
            self.quota
        );
        Err(ErrorReply::new(ErrorCode::Full, message))
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
            self.shelf.close().await;
        });
    }
}

#[async_trait]
impl PinStore for Store {
    fn quota(&self) -> u64 {
        self.quota
    }

    async fn keep(&self, file: &FileRecord, pin: Pin) -> Result<u64, ErrorReply> {
        let refusal = self.fetches.lock().get(&file.id).and_then(|fetch| fetch.refusal.clone());
        if let Some(refusal) = refusal {
            self.fetches.lock().remove(&file.id);
            if let Err(error) = self.catalogue.unpin(&file.id).await {
                tracing::warn!(id = %file.id, %error, "a pin that cannot be kept could not be taken back");
            }
            self.discard(&file.id).await?;
            return Err(refusal);
        }
        let whole = self.library().entry(&file.id).is_some_and(|entry| entry.is_complete());
        if !(pin.held && whole) {
            self.begin(file);
        }
        Ok(self.have(&file.id).await)
    }

    async fn discard(&self, id: &FileId) -> Result<(), ErrorReply> {
        let fetch = self.fetches.lock().remove(id);
        if let Some(fetch) = fetch {
            fetch.stop.cancel();
        }
        match self.library().remove(id).await {
            Ok(()) | Err(enjambre_core::library::error::LibraryError::NotFound { .. }) => Ok(()),
            Err(error) => {
                tracing::warn!(%id, %error, "a copy could not be deleted");
                Err(ErrorReply::new(ErrorCode::Storage, "the copy could not be deleted"))
            }
        }
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
