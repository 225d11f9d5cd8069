//! A simulated tracker, which can be killed and restarted with its database.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::protocol::server::serve;
use enjambre_core::runtime::clock::Clock;
use enjambre_core::storage::memory::Disk;
use enjambre_core::{Endpoint, Listener, Storage, Transport, UnixMillis};
use enjambre_swarm::catalogue::Catalogue;
use enjambre_swarm::tracker::pin_store::PinStore;
use enjambre_swarm::tracker::service::TrackerService;
use enjambre_swarm::tracker::settings::TrackerSettings;
use enjambre_testkit::storage::fault::FaultyStorage;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::faults::{DiskFaults, disconnect};
use super::flaw::Flaw;
use super::link::Link;
use super::model::Model;
use super::replicas::Replicas;
use super::site::Site;
use super::trace::Trace;

/// A simulated database server. Several trackers may share it; it keeps its data when they end.
#[derive(Debug)]
pub struct Database {
    /// The persistent data.
    pub disk: Disk,
    open: Arc<dyn Storage>,
    flaw: Option<Flaw>,
}

impl Database {
    /// Creates an empty database, optionally with a deliberate flaw.
    pub fn new(flaw: Option<Flaw>) -> Self {
        let disk = Disk::new();
        let open = Flaw::disk(flaw, Arc::new(disk.open()), 0);
        Self { disk, open, flaw }
    }

    /// Opens the catalogue in the database.
    pub async fn catalogue(&self, now: UnixMillis) -> Result<Catalogue, String> {
        let rules = TrackerSettings::default().rules();
        Catalogue::open(Arc::clone(&self.open), rules, now).await.map_err(|error| error.to_string())
    }

    /// Discards all commits since the last sync except the first `keeping`. The trackers must be restarted.
    pub fn power_cut(&mut self, keeping: usize) {
        self.disk.power_cut_keeping(keeping);
        self.open = Flaw::disk(self.flaw, Arc::new(self.disk.open()), 0);
    }
}

/// A simulated tracker.
#[derive(Debug)]
pub struct Tracker {
    /// The name.
    pub name: String,
    /// The index of the database.
    pub database: usize,
    /// The place in the network.
    pub site: Site,
    /// The disks of the index and the content of its replicas, if it stores any.
    replica_disks: Option<[Disk; 2]>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    storage: Arc<FaultyStorage>,
    replicas: Option<Replicas>,
    /// With and without authentication.
    listeners: [Arc<dyn Listener>; 2],
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Tracker {
    /// Creates a tracker without starting it.
    pub fn new(number: usize, database: usize, site: Site, stores_replicas: bool) -> Self {
        let replica_disks = stores_replicas.then(|| [Disk::new(), Disk::new()]);
        Self { name: format!("t{number}"), database, site, replica_disks, running: None }
    }

    /// Whether the tracker is running.
    pub const fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Starts the tracker. After an error it is not running.
    pub async fn start(
        &mut self,
        database: &Database,
        clock: &Arc<dyn Clock>,
        trace: &Trace,
        model: &Arc<Mutex<Model>>,
        faults: DiskFaults,
        seed: u64,
    ) -> Result<(), String> {
        let storage = Arc::new(FaultyStorage::new(database.open.clone(), seed));
        faults.apply(&storage);
        let settings = TrackerSettings::default();
        let storage_handle: Arc<dyn Storage> = storage.clone();
        let catalogue = Catalogue::open(storage_handle, settings.rules(), clock.now()).await;
        let catalogue = Arc::new(catalogue.map_err(|error| error.to_string())?);
        let replicas = match &self.replica_disks {
            Some(disks) => {
                let ended = CancellationToken::new();
                let link = Link::transport(self.site.transport(), &self.name, trace, model, ended);
                Some(Replicas::open(disks, link, &self.site, &catalogue, clock).await?)
            }
            None => None,
        };
        let pins = replicas.as_ref().map(|replicas| Arc::clone(&replicas.store) as Arc<dyn PinStore>);
        let me = self.site.key.peer_id();
        let service = Arc::new(TrackerService::new(catalogue, me, settings, Arc::clone(clock), pins));
        let listen = async |transport: Arc<dyn Transport>, endpoint: &Endpoint| {
            transport.bind(endpoint).await.map_err(|error| error.to_string())
        };
        let listeners = [
            listen(self.site.transport(), &self.site.endpoint).await?,
            listen(self.site.plaintext(), &self.site.plaintext_endpoint()).await?,
        ];
        let shutdown = CancellationToken::new();
        let run = {
            let (service, shutdown) = (Arc::clone(&service), shutdown.clone());
            tokio::spawn(async move { service.run(shutdown).await })
        };
        let handler = match &replicas {
            Some(replicas) => replicas.handler(service),
            None => service,
        };
        let mut tasks = vec![run];
        tasks.extend(
            listeners.iter().map(|listener| tokio::spawn(serve(Arc::clone(listener), Arc::clone(&handler)))),
        );
        if let Some(replicas) = &replicas {
            replicas.store.start();
        }
        self.running = Some(Running { storage, replicas, listeners, shutdown, tasks });
        Ok(())
    }

    /// Sets the faults of the connection to the database.
    pub fn set_faults(&self, faults: DiskFaults) {
        if let Some(running) = &self.running {
            faults.apply(&running.storage);
        }
    }

    /// Ends the process like `kill -9`.
    pub async fn kill(&mut self) {
        let Some(running) = self.running.take() else { return };
        disconnect(&running.storage);
        for task in &running.tasks {
            task.abort();
        }
        for listener in &running.listeners {
            listener.shutdown(Duration::ZERO).await;
        }
        if let Some(replicas) = &running.replicas {
            replicas.stop().await;
        }
    }

    /// Takes the replica store of a running tracker.
    pub(super) fn take_replicas(&mut self) -> Option<Replicas> {
        self.running.as_mut()?.replicas.take()
    }

    /// Shuts the tracker down cleanly.
    pub async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        if let Some(replicas) = &running.replicas {
            replicas.store.leave().await;
            replicas.stop().await;
        }
        for listener in &running.listeners {
            listener.shutdown(Duration::ZERO).await;
        }
        running.shutdown.cancel();
        for task in running.tasks {
            let _ended = task.await;
        }
    }
}
