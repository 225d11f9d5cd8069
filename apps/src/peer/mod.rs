//! A peer, put together from its configuration: library, swarm, control endpoint.
//!
//! A daemon and a command that runs alone are the same node; they differ in what they do when the port is taken
//! and in how long they live. `commands` is what a node does for the command line.

mod commands;
mod errors;
pub mod mender;
mod publication;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enjambre_core::admission::door::Door;
use enjambre_core::admission::introducing::MemberTransport;
use enjambre_core::admission::kept::Kept;
use enjambre_core::admission::members::Members;
use enjambre_core::announcer::Announcer;
use enjambre_core::clock::SystemClock;
use enjambre_core::download::downloader::Downloader;
use enjambre_core::download::wanted::DownloadSettings;
use enjambre_core::library::content::ContentStore;
use enjambre_core::library::library::Library;
use enjambre_core::library::settings::LibrarySettings;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::identity::{KeyPair, PublicKey};
use enjambre_core::offering::{LibraryOffers, TrackerProviders};
use enjambre_core::protocol::server::Handler;
use enjambre_core::rate::RateLimit;
use enjambre_core::seeder::{Seeder, SeederSettings};
use enjambre_core::storage::{Role, Storage};
use enjambre_core::tracker::presence::Presence;
use enjambre_core::tracker::trackers::Trackers;
use enjambre_core::transport::dialer::Dialer;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::load::Loaded;
use crate::config::sections::{ContentKind, NodeKind};
use crate::config::value::Rate;
use crate::control::{message::Execute, server, socket};
use crate::data_dir::DataDir;
use crate::failure::{Failure, Status};
use crate::listeners::{self, Listeners};
use crate::node_key;
use crate::registry::{Place, Registry};
use mender::Mender;

/// How a node takes part in the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// `enjambre peer`: a port that is taken is an error.
    Daemon,
    /// A command that runs alone: where the port is taken it offers nothing.
    Command,
    /// A command that only looks at the library.
    Offline,
}

/// The shares of the time between a signal and the end of the process, see [`crate::shutdown::LIMIT`].
const STOP_TRANSFERS: Duration = Duration::from_millis(1000);
const STOP_LISTENING: Duration = Duration::from_millis(300);
const STOP_LIBRARY: Duration = Duration::from_millis(1500);

/// The parts of a node that keeps files: of a peer, or of a tracker that keeps copies.
#[derive(Debug)]
pub struct Shelf {
    /// The files.
    pub library: Arc<Library>,
    /// Fetches files.
    pub downloader: Downloader,
    /// Serves files.
    pub seeder: Arc<Seeder>,
    /// What is known of the swarm, where it is by invitation.
    pub members: Option<Arc<Members>>,
    storages: Vec<Arc<dyn Storage>>,
}

impl Shelf {
    /// Opens the library at a place. With an `authority` files are fetched from members of its swarm only.
    pub async fn open(
        registry: &Registry,
        loaded: &Loaded,
        place: Place,
        dialer: &Arc<Dialer>,
        key: &KeyPair,
        authority: Option<PublicKey>,
    ) -> Result<Self, Failure> {
        let config = &loaded.config;
        let open = |role| registry.open_storage(loaded, Place { role, ..place.clone() });
        let index = open(Role::Records).await?;
        let mut storages = vec![Arc::clone(&index)];
        let content = match config.library.content {
            ContentKind::Database => {
                let content = open(Role::Content).await?;
                storages.push(Arc::clone(&content));
                ContentStore::Database(content)
            }
            ContentKind::Files => ContentStore::Files(place.data_dir.join("content")),
        };
        let members = match authority {
            Some(authority) => {
                let kept = Kept::new(Arc::clone(&index));
                let opened = Members::open(authority, key.peer_id(), Arc::new(SystemClock), Some(kept)).await;
                Some(opened.map_err(|error| {
                    Failure::from_error(Status::Failed, &error).context("the membership cannot be read")
                })?)
            }
            None => None,
        };
        let dialer = match &members {
            Some(members) => Arc::new(
                dialer.through(|transport| Arc::new(MemberTransport::new(transport, Arc::clone(members)))),
            ),
            None => Arc::clone(dialer),
        };
        let library = Library::open(index, content, LibrarySettings::default()).await.map_err(|error| {
            Failure::from_error(Status::Failed, &error).context("the library cannot be opened")
        })?;
        let limit = |rate: Rate| Arc::new(RateLimit::new(rate.get().and_then(NonZeroU64::new)));
        let settings =
            DownloadSettings { patience: config.download.patience.get(), ..DownloadSettings::default() };
        let downloader = Downloader::new(
            Arc::clone(&library),
            dialer,
            limit(config.limits.download),
            Some(key.peer_id()),
            settings,
        );
        let seeder =
            Seeder::new(Arc::clone(&library), limit(config.limits.upload), SeederSettings::default());
        Ok(Self { library, downloader, seeder: Arc::new(seeder), members, storages })
    }

    /// What answers other peers: in a swarm by invitation, its members.
    pub fn handler(&self) -> Arc<dyn Handler> {
        let seeder: Arc<dyn Handler> = Arc::clone(&self.seeder) as _;
        match &self.members {
            Some(members) => Arc::new(Door::new(seeder, Arc::clone(members))),
            None => seeder,
        }
    }

    /// Ends downloads, makes everything durable and closes the databases, as far as the time allows. In `haste` the
    /// disk is not waited for: what nobody was told to be durable is looked at by the next process.
    pub async fn close(&self, haste: bool) {
        if timeout(STOP_TRANSFERS, self.downloader.shutdown()).await.is_err() {
            tracing::warn!("a download did not stop in time");
        }
        let close = async {
            let closed = if haste { self.library.leave().await } else { self.library.close().await };
            if let Err(error) = closed {
                tracing::warn!(
                    "the library was not closed in order: {}",
                    Failure::from_error(Status::Failed, &error)
                );
            }
            for storage in &self.storages {
                if let Err(error) = storage.close().await {
                    tracing::warn!(
                        "a database was not closed in order: {}",
                        Failure::from_error(Status::Failed, &error)
                    );
                }
            }
        };
        if timeout(STOP_LIBRARY, close).await.is_err() {
            tracing::warn!("the library was not closed in time; what is not on the disk is fetched again");
        }
    }
}

/// A running peer. [`PeerNode::stop`] ends it in order.
#[derive(Debug)]
pub struct PeerNode {
    inner: Arc<Node>,
    listeners: Listeners,
    background: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    /// The last to go: from then on another process may own the folder.
    data_dir: DataDir,
}

/// What the commands of a peer work with.
#[derive(Debug)]
pub(super) struct Node {
    shelf: Shelf,
    key: KeyPair,
    trackers: Arc<Trackers>,
    providers: Arc<TrackerProviders>,
    /// None while offline.
    presence: Option<Arc<Presence>>,
    listen: Vec<Endpoint>,
    reach: Reach,
    started: Instant,
}

impl PeerNode {
    /// Starts a peer in a folder that this process owns.
    pub async fn start(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: DataDir,
        reach: Reach,
    ) -> Result<Self, Failure> {
        let folder = data_dir.path().to_owned();
        let key = crate::blocking({
            let folder = folder.clone();
            move || node_key::load_or_create(&folder)
        })
        .await?;
        let dialer = registry.dialer(loaded, &key)?;
        let place = Place {
            data_dir: folder.clone(),
            kind: NodeKind::Peer,
            store: false,
            role: Role::Records,
            scratch: None,
        };
        let authority = loaded.config.swarm.authority.get();
        let shelf = Shelf::open(registry, loaded, place, &dialer, &key, authority).await?;
        let mut listeners = match reach {
            Reach::Offline => Listeners::default(),
            _ => match Listeners::bind(&dialer, &loaded.config.transport.listen).await {
                Ok(listeners) => listeners,
                Err(error) if reach == Reach::Command && listeners::is_in_use(&error) => {
                    tracing::warn!(
                        "{}; going on without offering anything to others",
                        Failure::from_error(Status::Failed, &error)
                    );
                    Listeners::default()
                }
                Err(error) => {
                    shelf.close(false).await;
                    return Err(listeners::bind_failure(&error));
                }
            },
        };
        listeners.serve(&shelf.handler());
        let listen = listeners.endpoints();
        let trackers = Arc::new(Trackers::new(&dialer, loaded.config.peer.trackers.iter().cloned()));
        let stop = CancellationToken::new();
        let mut background = Vec::new();
        let presence = (reach != Reach::Offline).then(|| {
            let advertise = &loaded.config.transport.advertise;
            let endpoints = match (listen.is_empty(), advertise.is_empty()) {
                (true, _) => Vec::new(),
                (false, true) => listen.clone(),
                (false, false) => advertise.clone(),
            };
            let source = LibraryOffers::new(Arc::clone(&shelf.library), !listen.is_empty());
            let members = shelf.members.clone();
            Arc::new(Presence::start_in(members, key.clone(), endpoints, &trackers, Arc::new(source)))
        });
        if let Some(presence) = presence.as_ref().filter(|_| !listen.is_empty()) {
            let announcer = Announcer::new(Arc::clone(&shelf.library), Arc::clone(presence));
            background.push(tokio::spawn(stop.clone().run_until_cancelled_owned(announcer.run()).map_drop()));
        }
        let providers = Arc::new(TrackerProviders(Arc::clone(&trackers)));
        let inner = Arc::new(Node {
            shelf,
            key,
            trackers,
            providers,
            presence,
            listen,
            reach,
            started: Instant::now(),
        });
        if reach != Reach::Offline {
            let (node, mender) = (Arc::clone(&inner), Mender::new(Arc::clone(&inner.shelf.library)));
            let mending = async move {
                mender.run(&node.shelf.downloader, Arc::clone(&node.providers) as _).await;
            };
            background.push(tokio::spawn(stop.clone().run_until_cancelled_owned(mending).map_drop()));
            match socket::listen(&folder) {
                Ok(listener) => {
                    let handler: Arc<dyn Execute> = Arc::clone(&inner) as _;
                    background.push(tokio::spawn(server::serve(listener, handler, stop.clone())));
                }
                Err(error) => {
                    let node = Self { inner, listeners, background, stop, data_dir };
                    node.stop().await;
                    return Err(Failure::from(error).context("the control socket cannot be made"));
                }
            }
        }
        Ok(Self { inner, listeners, background, stop, data_dir })
    }

    /// Where it listens.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.inner.listen
    }

    /// What runs commands here.
    pub fn handler(&self) -> &dyn Execute {
        &*self.inner
    }

    /// Leaves the swarm, finishes writes and lets go of everything.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let leave = async {
            if let Some(presence) = &self.inner.presence {
                presence.leave().await;
            }
        };
        tokio::join!(leave, self.listeners.shutdown(STOP_LISTENING), async {
            futures::future::join_all(self.background.drain(..)).await;
            if self.inner.reach != Reach::Offline {
                socket::remove(self.data_dir.path());
            }
            self.inner.shelf.close(self.inner.reach == Reach::Command).await;
        });
    }
}

/// A future whose result is of no interest.
trait MapDrop: Future + Sized {
    fn map_drop(self) -> impl Future<Output = ()>;
}

impl<F: Future> MapDrop for F {
    async fn map_drop(self) {
        self.await;
    }
}
