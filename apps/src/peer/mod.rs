//! A peer, assembled from its configuration: library, swarm and control socket.
//!
//! A daemon and a command that runs without a daemon use the same node. They differ in the reaction to a port in use and
//! in their lifetime. `commands` executes the commands of the command line, `get` the downloads.

mod commands;
mod get;
pub(crate) mod pins;
pub(crate) mod services;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enjambre_core::{Endpoint, KeyPair};
#[cfg(feature = "http")]
use enjambre_http::gateway::Gateway;
use enjambre_swarm::peer::announcer::Announcer;
use enjambre_swarm::peer::offers::LibraryOffers;
use enjambre_swarm::peer::repair::Repair;
use enjambre_swarm::tracker_client::presence::Presence;
use enjambre_swarm::tracker_client::trackers::Trackers;
use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::control::{message::Execute, server, socket};
use crate::data_dir::DataDir;
use crate::failure::{Failure, Status};
#[cfg(feature = "http")]
use crate::http::{Finder, HttpServer, Readiness};
use crate::listeners::{self, Listeners};
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

/// Share of the shutdown time, [`crate::shutdown::LIMIT`].
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
    key: KeyPair,
    trackers: Arc<Trackers>,
    /// `None` if the node is offline.
    presence: Option<Arc<Presence>>,
    /// The data directory.
    folder: PathBuf,
    listen: Vec<Endpoint>,
    reach: Reach,
    started: Instant,
}

impl PeerNode {
    /// Starts a peer. The data directory is locked by this process.
    pub(crate) async fn start(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: DataDir,
        reach: Reach,
    ) -> Result<Self, Failure> {
        let folder = data_dir.path().to_owned();
        let key = node_key::load_or_create(&folder).await?;
        let dialer = registry.dialer(loaded, &key)?;
        let place = node_place(NodeKind::Peer, &folder);
        let authority = loaded.config.swarm.authority.get();
        let services = PeerServices::open(registry, loaded, place, &dialer, &key, authority).await?;
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
        let trackers = Arc::new(Trackers::new(&dialer, loaded.config.peer.trackers.iter().cloned()));
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
            background.push(tokio::spawn(stop.clone().run_until_cancelled_owned(announcer.run()).map(drop)));
        }
        let started = Instant::now();
        let inner = Arc::new(Node { services, key, trackers, presence, folder, listen, reach, started });
        let mut node = Self {
            inner,
            listeners,
            #[cfg(feature = "http")]
            http: None,
            background,
            stop,
            data_dir,
        };
        if reach != Reach::Offline {
            let Self { inner, stop, background, .. } = &mut node;
            let downloader = Arc::clone(&inner.services.downloader);
            let repair = Repair::new(downloader, Arc::clone(&inner.trackers) as _);
            background.push(tokio::spawn(stop.clone().run_until_cancelled_owned(repair.run()).map(drop)));
            match socket::listen(&inner.folder, loaded.group_access(NodeKind::Peer)) {
                Ok(listener) => {
                    let handler: Arc<dyn Execute> = Arc::clone(inner) as _;
                    background.push(tokio::spawn(server::serve(
                        listener,
                        handler,
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
        #[cfg(feature = "http")]
        if reach == Reach::Daemon {
            match start_http(loaded, &node.inner).await {
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
            let mode = if self.inner.reach == Reach::Command { CloseMode::Fast } else { CloseMode::Durable };
            self.inner.services.close(mode).await;
        });
    }
}

#[cfg(feature = "http")]
async fn start_http(loaded: &Loaded, node: &Node) -> Result<Option<HttpServer>, Failure> {
    let (library, trackers) = (Arc::clone(&node.services.library), Arc::clone(&node.trackers));
    let gateway = Gateway {
        downloader: Arc::clone(&node.services.downloader),
        providers: Arc::clone(&trackers) as _,
        catalogue: Arc::new(Finder { library, trackers, only_stored: false }),
    };
    let readiness = Readiness::new(&node.folder, node.services.storages.clone(), node.presence.clone());
    HttpServer::start(loaded, &node.folder, Some(gateway), Arc::new(readiness)).await
}
