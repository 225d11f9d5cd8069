//! A tracker of a simulation, which can be killed and started again on its database.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::catalogue::Catalogue;
use enjambre_core::clock::Clock;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::protocol::server;
use enjambre_core::storage::Storage;
use enjambre_core::storage::fault::FaultyStorage;
use enjambre_core::storage::memory::Disk;
use enjambre_core::tracker::service::TrackerService;
use enjambre_core::tracker::settings::TrackerSettings;
use enjambre_core::transport::Listener;
use enjambre_core::transport::dialer::Dialer;
use enjambre_core::transport::memory::MemoryNetwork;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::faults::{DiskFaults, cut_off};
use super::flaw::Flaw;

/// A database server: several trackers may work on it, and it outlives them.
#[derive(Debug)]
pub struct Database {
    /// What survives.
    pub disk: Disk,
    open: Arc<dyn Storage>,
    flaw: Option<Flaw>,
}

impl Database {
    /// An empty one, perhaps on a disk that is broken.
    pub fn new(flaw: Option<Flaw>) -> Self {
        let disk = Disk::new();
        let open = Flaw::disk(flaw, Arc::new(disk.open()), 0);
        Self { disk, open, flaw }
    }

    /// What is in it.
    pub async fn catalogue(&self, now: u64) -> Result<Catalogue, String> {
        let rules = TrackerSettings::default().rules();
        Catalogue::open(Arc::clone(&self.open), rules, now).await.map_err(|error| error.to_string())
    }

    /// Loses what was not synced but for so many commits. Its trackers have to be started anew.
    pub fn power_cut(&mut self, keeping: usize) {
        self.disk.power_cut_keeping(keeping);
        self.open = Flaw::disk(self.flaw, Arc::new(self.disk.open()), 0);
    }
}

/// One tracker.
#[derive(Debug)]
pub struct Tracker {
    /// Its name, which is its host.
    pub name: String,
    /// Which database it works on.
    pub database: usize,
    /// Where it listens.
    pub endpoint: Endpoint,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    storage: Arc<FaultyStorage>,
    listener: Arc<dyn Listener>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Tracker {
    /// One that is not started yet.
    pub fn new(number: usize, database: usize) -> Self {
        let name = format!("t{number}");
        let endpoint = format!("memory://{name}:1").parse().expect("it is an endpoint");
        Self { name, database, endpoint, running: None }
    }

    /// Whether it runs.
    pub const fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Starts it. Where the database fails it stays down.
    pub async fn start(
        &mut self,
        network: &MemoryNetwork,
        database: &Database,
        clock: &Arc<dyn Clock>,
        faults: DiskFaults,
        seed: u64,
    ) -> Result<(), String> {
        let storage = Arc::new(FaultyStorage::new(database.open.clone(), seed));
        faults.apply(&storage);
        let settings = TrackerSettings::default();
        let used: Arc<dyn Storage> = storage.clone();
        let catalogue = Catalogue::open(used, settings.rules(), clock.now_ms()).await;
        let catalogue = Arc::new(catalogue.map_err(|error| error.to_string())?);
        let service = Arc::new(TrackerService::new(catalogue, settings, Arc::clone(clock), None));
        let listener = Dialer::new(vec![network.transport()]).bind(&self.endpoint).await;
        let listener = listener.map_err(|error| error.to_string())?;
        let shutdown = CancellationToken::new();
        let run = {
            let (service, shutdown) = (Arc::clone(&service), shutdown.clone());
            tokio::spawn(async move { service.run(shutdown).await })
        };
        let serve = tokio::spawn(server::serve(Arc::clone(&listener), service));
        self.running = Some(Running { storage, listener, shutdown, tasks: vec![run, serve] });
        Ok(())
    }

    /// Has its way to the database fail so from now on.
    pub fn set_faults(&self, faults: DiskFaults) {
        if let Some(running) = &self.running {
            faults.apply(&running.storage);
        }
    }

    /// As `kill -9` does.
    pub async fn kill(&mut self) {
        let Some(running) = self.running.take() else { return };
        cut_off(&running.storage);
        for task in &running.tasks {
            task.abort();
        }
        running.listener.shutdown(Duration::ZERO).await;
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.listener.shutdown(Duration::ZERO).await;
        running.shutdown.cancel();
        for task in running.tasks {
            let _ended = task.await;
        }
    }
}
