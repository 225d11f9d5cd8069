//! A peer, assembled from its configuration: library, swarm and control socket.
//!
//! A daemon and a command that runs without a daemon use the same node. They differ in the reaction to a port in use and
//! in their lifetime. `commands` executes the commands of the command line, `get` the downloads. Only a daemon runs the
//! download queue.

mod catalogue;
mod commands;
mod downloads;
mod get;
pub(crate) mod pins;
pub(crate) mod services;
mod verify;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enjambre_control::{Execute, Failure, Status};
#[cfg(feature = "http")]
use enjambre_core::Dialer;
use enjambre_core::{Endpoint, KeyPair, runtime};
#[cfg(feature = "http")]
use enjambre_http::{
    api,
    dashboard::{self, Page},
    gateway::Gateway,
    metrics::Sources,
};
use enjambre_swarm::download::queue::DownloadQueue;
use enjambre_swarm::peer::announcer::Announcer;
use enjambre_swarm::peer::offers::LibraryOffers;
use enjambre_swarm::peer::repair::Repair;
use enjambre_swarm::tracker_client::presence::Presence;
use enjambre_swarm::tracker_client::trackers::Trackers;
use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::control::{server, socket};
use crate::data_dir::DataDir;
#[cfg(feature = "http")]
use crate::http::{Finder, HttpServer, Readiness};
use crate::listeners::{self, Listeners};
use crate::logging::Log;
use crate::node_commands::NodeCommands;
use crate::node_key;
use crate::registry::Registry;
use crate::registry::locations::node_place;
use services::{CloseMode, PeerServices};

/// How a node participates in the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// A daemon, `enjambre peer`: a port in use is an error.
    Daemon,
    /// A command without a daemon: if the port is in use, it offers nothing.
    Command,
    /// A command that only uses the library.
    Offline,
}

/// Shares of the shutdown time, [`crate::shutdown::LIMIT`].
const STOP_QUEUE: Duration = Duration::from_millis(300);
const STOP_LISTENING: Duration = Duration::from_millis(300);

/// A running peer. [`PeerNode::stop`] shuts it down.
#[derive(Debug)]
pub(crate) struct PeerNode {
    inner: Arc<Node>,
    listeners: Listeners,
    #[cfg(feature = "http")]
    http: Option<HttpServer>,
    background: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    /// Dropped last: then another process may lock the data directory.
    data_dir: DataDir,
}

/// The parts of a peer that its commands use.
#[derive(Debug)]
pub(super) struct Node {
    services: PeerServices,
    #[cfg(feature = "http")]
    dialer: Arc<Dialer>,
    key: KeyPair,
    trackers: Arc<Trackers>,
    downloads: DownloadQueue,
    /// `None` if the node is offline.
    presence: Option<Arc<Presence>>,
    /// The data directory.
    folder: PathBuf,
    listen: Vec<Endpoint>,
    reach: Reach,
    started: Instant,
}

impl PeerNode {
    /// Starts a peer. The data directory is locked by this process. With `init` a missing key is replaced, or else a database
    /// that is empty, outdated or without its content is accepted.
    pub(crate) async fn start(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: DataDir,
        init: bool,
        reach: Reach,
        log: &Arc<Log>,
    ) -> Result<Self, Failure> {
        let folder = data_dir.path().to_owned();
        let (key, init) = node_key::load_or_replace(&folder, init).await?;
        let dialer = registry.dialer(loaded, &key)?;
        let place = node_place(NodeKind::Peer, &folder);
        let authority = loaded.config.swarm.authority.get();
        let services = PeerServices::open(registry, loaded, place, &dialer, &key, authority, init).await?;
        let trackers = Arc::new(Trackers::new(&dialer, loaded.config.peer.trackers.iter().cloned()));
        let queue = DownloadQueue::open(Arc::clone(&services.downloader), Arc::clone(&trackers) as _).await;
        let downloads = match queue {
            Ok(downloads) => downloads,
            Err(error) => {
                services.close(CloseMode::Fast).await;
                return Err(Failure::from(error).context("cannot open the download queue"));
            }
        };
        let mut listeners = match reach {
            Reach::Offline => Listeners::default(),
            _ => match Listeners::bind(&dialer, &loaded.config.transport.listen).await {
                Ok(listeners) => listeners,
                Err(error) if reach == Reach::Command && listeners::is_in_use(&error) => {
                    let error = Failure::from_error(Status::Failed, &error);
                    tracing::warn!(%error, "port in use; this command offers no files to other peers");
                    Listeners::default()
                }
                Err(error) => {
                    services.close(CloseMode::Durable).await;
                    return Err(listeners::bind_failure(&error));
                }
            },
        };
        listeners.serve(&services.handler());
        let listen = listeners.endpoints();
        let stop = CancellationToken::new();
        let mut background = Vec::new();
        let presence = (reach != Reach::Offline).then(|| {
            let advertise = &loaded.config.transport.advertise;
            let endpoints =
                if listen.is_empty() || advertise.is_empty() { &listen } else { advertise }.clone();
            let source = LibraryOffers::new(Arc::clone(&services.library), !listen.is_empty());
            let (members, source) = (services.members.clone(), Arc::new(source));
            Arc::new(Presence::start(members, key.clone(), endpoints, &trackers, source))
        });
        if let Some(presence) = presence.as_ref().filter(|_| !listen.is_empty()) {
            let announcer = Announcer::new(Arc::clone(&services.library), Arc::clone(presence));
            background
                .push(runtime::spawn(stop.clone().run_until_cancelled_owned(announcer.run()).map(drop)));
        }
        let started = Instant::now();
        let inner = Arc::new(Node {
            services,
            #[cfg(feature = "http")]
            dialer,
            key,
            trackers,
            downloads,
            presence,
            folder,
            listen,
            reach,
            started,
        });
        let mut node = Self {
            inner,
            listeners,
            #[cfg(feature = "http")]
            http: None,
            background,
            stop,
            data_dir,
        };
        let commands: Arc<dyn Execute> =
            Arc::new(NodeCommands::new(Arc::clone(&node.inner) as _, log, loaded.without_passwords()));
        if reach != Reach::Offline {
            let Self { inner, stop, background, .. } = &mut node;
            let downloader = Arc::clone(&inner.services.downloader);
            let repair = Repair::new(downloader, Arc::clone(&inner.trackers) as _);
            background.push(runtime::spawn(stop.clone().run_until_cancelled_owned(repair.run()).map(drop)));
            match socket::listen(&inner.folder, loaded.group_access(NodeKind::Peer)) {
                Ok(listener) => {
                    background.push(runtime::spawn(server::serve(
                        listener,
                        Arc::clone(&commands),
                        loaded.effective(),
                        stop.clone(),
                    )));
                }
                Err(error) => {
                    node.stop().await;
                    return Err(Failure::from(error).context("cannot create the control socket"));
                }
            }
        }
        if reach == Reach::Daemon {
            node.inner.downloads.start();
        }
        #[cfg(feature = "http")]
        if reach == Reach::Daemon {
            match start_http(loaded, &node.inner, commands).await {
                Ok(http) => node.http = http,
                Err(failure) => {
                    node.stop().await;
                    return Err(failure);
                }
            }
        }
        Ok(node)
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.inner.listen
    }

    /// Returns the URLs of the HTTP listener.
    pub(crate) fn urls(&self) -> &[String] {
        #[cfg(feature = "http")]
        if let Some(http) = &self.http {
            return &http.urls;
        }
        &[]
    }

    pub(crate) fn handler(&self) -> &dyn Execute {
        &*self.inner
    }

    /// Leaves the swarm, flushes pending writes and shuts the peer down.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        #[cfg(feature = "http")]
        if let Some(http) = self.http.take() {
            http.stop(STOP_LISTENING).await;
        }
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
            if timeout(STOP_QUEUE, self.inner.downloads.shutdown()).await.is_err() {
                tracing::warn!("stopping the download queue timed out");
            }
            let mode = if self.inner.reach == Reach::Command { CloseMode::Fast } else { CloseMode::Durable };
            self.inner.services.close(mode).await;
        });
    }
}

#[cfg(feature = "http")]
async fn start_http(
    loaded: &Loaded,
    node: &Arc<Node>,
    commands: Arc<dyn Execute>,
) -> Result<Option<HttpServer>, Failure> {
    let (library, trackers) = (Arc::clone(&node.services.library), Arc::clone(&node.trackers));
    let gateway = Gateway {
        downloader: Arc::clone(&node.services.downloader),
        providers: Arc::clone(&trackers) as _,
        catalogue: Arc::new(Finder { library, trackers, only_stored: false }),
        publisher: Some(Arc::clone(node) as _),
    };
    let readiness = Readiness::new(&node.folder, node.services.storages.clone(), node.presence.clone());
    let sources = Sources {
        role: "peer",
        data_dir: node.folder.clone(),
        dialer: Arc::clone(&node.dialer),
        http: Arc::default(),
        storages: node.services.named_storages().collect(),
        files: Some((Arc::clone(&node.services.downloader), Arc::clone(&node.services.seeder))),
        queue: Some(node.downloads.clone()),
        presence: node.presence.clone(),
        tracker: None,
        replicas: None,
    };
    let pages = api::peer(commands).merge(dashboard::routes(Page::Peer));
    HttpServer::start(loaded, &node.folder, Some(gateway), Arc::new(readiness), sources, pages).await
}
