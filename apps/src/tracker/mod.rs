//! A tracker, assembled from its configuration: catalogue, service, listeners and replicas.

pub(crate) mod admin;
pub(crate) mod endpoints_file;
mod pins;
mod replicas;
mod running;

#[cfg(feature = "http")]
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enjambre_control::{Execute, Failure};
#[cfg(feature = "http")]
use enjambre_core::Dialer;
use enjambre_core::protocol::server::Handler;
use enjambre_core::runtime::clock::SystemClock;
use enjambre_core::{Endpoint, Role, Storage, runtime};
#[cfg(feature = "http")]
use enjambre_http::{
    api,
    dashboard::{self, Page},
    gateway::Gateway,
    metrics::Sources,
};
use enjambre_swarm::tracker::gate::TrackerGate;
use enjambre_swarm::tracker::handler::TrackerHandler;
use enjambre_swarm::tracker::pin_store::PinStore;
use enjambre_swarm::tracker::service::TrackerService;
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
use crate::peer::services::PeerServices;
use crate::registry::Registry;
use crate::registry::locations::{node_place, replica_place};
use admin::{AdminService, open_catalogue};
use replicas::Replicas;
use running::RunningTracker;

/// Shares of the shutdown time, [`crate::shutdown::LIMIT`]. The shutdown of the replica store precedes them; see
/// [`crate::peer`].
const STOP_LISTENING: Duration = Duration::from_millis(300);
const STOP_STORAGE: Duration = Duration::from_millis(1200);

/// A running tracker. [`TrackerNode::stop`] shuts it down.
#[derive(Debug)]
pub(crate) struct TrackerNode {
    storage: Arc<dyn Storage>,
    replicas: Option<Replicas>,
    listeners: Listeners,
    #[cfg(feature = "http")]
    dialer: Arc<Dialer>,
    #[cfg(feature = "http")]
    service: Arc<TrackerService>,
    periodic: JoinHandle<()>,
    control: JoinHandle<()>,
    #[cfg(feature = "http")]
    http: Option<HttpServer>,
    stop: CancellationToken,
    data_dir: DataDir,
}

impl TrackerNode {
    /// Starts a tracker. The data directory is locked by this process. With `init` a missing key is replaced, or else a database
    /// that is empty, outdated or without its content is accepted.
    pub(crate) async fn start(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: DataDir,
        init: bool,
        log: &Arc<Log>,
    ) -> Result<Self, Failure> {
        let folder = data_dir.path().to_owned();
        let (key, init) = node_key::load_or_replace(&folder, init).await?;
        let dialer = registry.dialer(loaded, &key)?;
        let place = node_place(NodeKind::Tracker, &folder);
        let storage = registry.open_storage(loaded, place, Role::Records).await?;
        let tracker = key.peer_id();
        let (catalogue, admission, settings) =
            open_catalogue(registry, loaded, &folder, init, &storage, tracker).await?;
        let mut listeners = Listeners::bind(&dialer, &loaded.config.transport.listen)
            .await
            .map_err(|error| listeners::bind_failure(&error))?;
        let replicas = if loaded.config.tracker.store.enabled {
            let authority = admission.as_ref().map(|admission| *admission.authority().key());
            let place = replica_place(&folder);
            let services =
                PeerServices::open(registry, loaded, place, &dialer, &key, authority, init).await?;
            Some(Replicas::new(loaded, services, &dialer, key, &catalogue, &listeners.endpoints()))
        } else {
            None
        };
        let pins = replicas.as_ref().map(|replicas| Arc::clone(&replicas.store) as Arc<dyn PinStore>);
        let listen = listeners.endpoints();
        let admin = AdminService::new(
            registry,
            loaded,
            Arc::clone(&catalogue),
            admission.clone(),
            &listen,
            tracker,
            pins.clone(),
        );
        let service = TrackerService::new(catalogue, tracker, settings, Arc::new(SystemClock), pins);
        let service = Arc::new(service.with_announced_hosts(loaded.config.tracker.announced_hosts.clone()));
        let seeder = replicas.as_ref().map(|replicas| Arc::clone(&replicas.services.seeder));
        endpoints_file::write(&folder, &listen).await;
        let handler: Arc<dyn Handler> = Arc::new(TrackerHandler { service: Arc::clone(&service), seeder });
        let handler = match &admission {
            Some(admission) => Arc::new(TrackerGate::new(handler, Arc::clone(admission))),
            None => handler,
        };
        listeners.serve(&handler);
        let running = RunningTracker {
            admin,
            service: Arc::clone(&service),
            storage: Arc::clone(&storage),
            peer: tracker,
            listen,
            backend: loaded.config.storage.backend.clone(),
            started: Instant::now(),
        };
        let commands: Arc<dyn Execute> =
            Arc::new(NodeCommands::new(Arc::new(running), log, loaded.without_passwords()));
        let stop = CancellationToken::new();
        let periodic = runtime::spawn({
            let (service, stop) = (Arc::clone(&service), stop.clone());
            async move {
                let watch = async {
                    if let Some(admission) = admission {
                        admission.run(settings.flush_interval(), stop.clone()).await;
                    }
                };
                tokio::join!(service.run(stop.clone()), watch);
            }
        });
        let control = match socket::listen(&folder, loaded.group_access(NodeKind::Tracker)) {
            Ok(listener) => runtime::spawn(server::serve(
                listener,
                Arc::clone(&commands),
                loaded.effective(),
                stop.clone(),
            )),
            Err(error) => {
                stop.cancel();
                listeners.shutdown(STOP_LISTENING).await;
                return Err(Failure::from(error).context("cannot create the control socket"));
            }
        };
        if let Some(replicas) = &replicas {
            replicas.store.start();
        }
        let node = Self {
            storage,
            replicas,
            listeners,
            #[cfg(feature = "http")]
            dialer,
            #[cfg(feature = "http")]
            service,
            periodic,
            control,
            #[cfg(feature = "http")]
            http: None,
            stop,
            data_dir,
        };
        #[cfg(feature = "http")]
        let mut node = node;
        #[cfg(feature = "http")]
        match start_http(loaded, &folder, &node, commands).await {
            Ok(http) => node.http = http,
            Err(failure) => {
                node.stop().await;
                return Err(failure);
            }
        }
        Ok(node)
    }

    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.endpoints()
    }

    /// Returns the URLs of the HTTP listener.
    pub(crate) fn urls(&self) -> &[String] {
        #[cfg(feature = "http")]
        if let Some(http) = &self.http {
            return &http.urls;
        }
        &[]
    }

    /// Flushes pending writes and shuts the tracker down.
    pub(crate) async fn stop(mut self) {
        #[cfg(feature = "http")]
        if let Some(http) = self.http.take() {
            http.stop(STOP_LISTENING).await;
        }
        if let Some(replicas) = &self.replicas {
            // The store leaves the swarm through this tracker, which must still be listening.
            replicas.stop().await;
        }
        self.stop.cancel();
        self.listeners.shutdown(STOP_LISTENING).await;
        let end = async {
            let _ = tokio::join!(self.periodic, self.control);
            socket::remove(self.data_dir.path());
            if let Err(error) = self.storage.close().await {
                let error = Failure::from(error);
                tracing::warn!(%error, "database close failed");
            }
        };
        if timeout(STOP_STORAGE, end).await.is_err() {
            tracing::warn!("database close timed out");
        }
    }
}

#[cfg(feature = "http")]
async fn start_http(
    loaded: &Loaded,
    data_dir: &Path,
    node: &TrackerNode,
    commands: Arc<dyn Execute>,
) -> Result<Option<HttpServer>, Failure> {
    let gateway = node.replicas.as_ref().map(|Replicas { services, trackers, .. }| Gateway {
        downloader: Arc::clone(&services.downloader),
        providers: Arc::clone(trackers) as _,
        catalogue: Arc::new(Finder {
            library: Arc::clone(&services.library),
            trackers: Arc::clone(trackers),
            only_stored: true,
        }),
        publisher: None,
    });
    let replicas = node.replicas.iter().flat_map(|replicas| &replicas.services.storages);
    let storages = std::iter::once(&node.storage).chain(replicas).cloned().collect();
    let stores = node.replicas.iter().flat_map(|replicas| replicas.services.named_storages());
    let files = |Replicas { services, .. }: &Replicas| {
        (Arc::clone(&services.downloader), Arc::clone(&services.seeder))
    };
    let sources = Sources {
        role: "tracker",
        data_dir: data_dir.to_owned(),
        dialer: Arc::clone(&node.dialer),
        http: Arc::default(),
        storages: std::iter::once(("catalogue", Arc::clone(&node.storage))).chain(stores).collect(),
        files: node.replicas.as_ref().map(files),
        queue: None,
        presence: None,
        tracker: Some(Arc::clone(&node.service)),
        replicas: node.replicas.as_ref().map(|replicas| Arc::clone(&replicas.store)),
    };
    let readiness = Arc::new(Readiness::new(data_dir, storages, None));
    let pages = api::tracker(commands).merge(dashboard::routes(Page::Tracker));
    HttpServer::start(loaded, data_dir, gateway, readiness, sources, pages).await
}
