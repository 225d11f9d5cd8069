//! A tracker, put together from its configuration: catalogue, service, listeners, and the copies that it keeps.

mod handler;
pub mod office;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::catalogue::Catalogue;
use enjambre_core::clock::{Clock, SystemClock};
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::PeerId;
use enjambre_core::protocol::server::Handler;
use enjambre_core::storage::{Role, Storage};
use enjambre_core::tracker::admission::Admission;
use enjambre_core::tracker::gate::Gate;
use enjambre_core::tracker::pin::PinStore;
use enjambre_core::tracker::service::TrackerService;
use enjambre_core::tracker::settings::TrackerSettings;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::control::{server, socket};
use crate::data_dir::DataDir;
use crate::failure::{Failure, Status};
use crate::listeners::{self, Listeners};
use crate::node_key;
use crate::registry::{Place, Registry};
use handler::TrackerHandler;
use office::Office;
use store::Store;

/// The shares of the time between a signal and the end of the process, see [`crate::shutdown::LIMIT`]; what the
/// store takes comes before, see [`crate::peer`].
const STOP_LISTENING: Duration = Duration::from_millis(300);
const STOP_STORAGE: Duration = Duration::from_millis(1200);

/// A running tracker. [`TrackerNode::stop`] ends it in order.
#[derive(Debug)]
pub struct TrackerNode {
    storage: Arc<dyn Storage>,
    store: Option<Arc<Store>>,
    listeners: Listeners,
    service: JoinHandle<()>,
    control: JoinHandle<()>,
    stop: CancellationToken,
    data_dir: DataDir,
}

impl TrackerNode {
    /// Starts a tracker in a folder that this process owns.
    pub async fn start(registry: &Registry, loaded: &Loaded, data_dir: DataDir) -> Result<Self, Failure> {
        let section = &loaded.config.tracker;
        let folder = data_dir.path().to_owned();
        let key = crate::blocking({
            let folder = folder.clone();
            move || node_key::load_or_create(&folder)
        })
        .await?;
        let dialer = registry.dialer(loaded, &key)?;
        let place = Place {
            data_dir: folder.clone(),
            kind: NodeKind::Tracker,
            store: false,
            role: Role::Records,
            scratch: None,
        };
        let storage = registry.open_storage(loaded, place).await?;
        let settings = TrackerSettings {
            lease: section.lease.get(),
            forget: section.forget.get(),
            cache: section.cache.as_usize(),
            ..TrackerSettings::default()
        };
        let catalogue =
            Catalogue::open(Arc::clone(&storage), settings.rules(), SystemClock.now_ms()).await.map_err(
                |error| Failure::from_error(Status::Failed, &error).context("the catalogue cannot be opened"),
            )?;
        let catalogue = Arc::new(catalogue);
        let admission = open_admission(loaded, &catalogue, key.peer_id()).await?;
        let mut listeners = Listeners::bind(&dialer, &loaded.config.transport.listen)
            .await
            .map_err(|error| listeners::bind_failure(&error))?;
        let store = if section.store.enabled {
            let authority = admission.as_ref().map(|admission| *admission.authority().key());
            let shelf = Store::open_shelf(registry, loaded, &folder, &dialer, &key, authority).await?;
            Some(Store::new(loaded, shelf, &dialer, &key, &catalogue, &listeners.endpoints()))
        } else {
            None
        };
        let pins = store.as_ref().map(|store| Arc::clone(store) as Arc<dyn PinStore>);
        let office =
            Office::new(registry, loaded, Arc::clone(&catalogue), admission.clone(), listeners.endpoints());
        let service = Arc::new(TrackerService::new(catalogue, settings, Arc::new(SystemClock), pins));
        let seeder = store.as_ref().map(|store| store.seeder());
        note_endpoints(&folder, &listeners.endpoints()).await;
        let handler: Arc<dyn Handler> = Arc::new(TrackerHandler { service: Arc::clone(&service), seeder });
        let handler = match &admission {
            Some(admission) => Arc::new(Gate::new(handler, Arc::clone(admission))),
            None => handler,
        };
        listeners.serve(&handler);
        let stop = CancellationToken::new();
        let service = tokio::spawn({
            let stop = stop.clone();
            async move {
                let watch = async {
                    if let Some(admission) = admission {
                        admission.run(settings.flush_interval(), stop.clone()).await;
                    }
                };
                tokio::join!(service.run(stop.clone()), watch);
            }
        });
        let control = match socket::listen(&folder) {
            Ok(listener) => tokio::spawn(server::serve(listener, Arc::new(office), stop.clone())),
            Err(error) => {
                stop.cancel();
                listeners.shutdown(STOP_LISTENING).await;
                return Err(Failure::from(error).context("the control socket cannot be made"));
            }
        };
        if let Some(store) = &store {
            store.start();
        }
        Ok(Self { storage, store, listeners, service, control, stop, data_dir })
    }

    /// Where it listens.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.endpoints()
    }

    /// Writes what is to be written and lets go of everything.
    pub async fn stop(mut self) {
        if let Some(store) = &self.store {
            // It says goodbye to its own tracker, so that one still listens.
            store.stop().await;
        }
        self.stop.cancel();
        self.listeners.shutdown(STOP_LISTENING).await;
        let end = async {
            let _ = tokio::join!(self.service, self.control);
            socket::remove(self.data_dir.path());
            if let Err(error) = self.storage.close().await {
                tracing::warn!(
                    "the database was not closed in order: {}",
                    Failure::from_error(Status::Failed, &error)
                );
            }
        };
        if timeout(STOP_STORAGE, end).await.is_err() {
            tracing::warn!("the database was not closed in time");
        }
    }
}

/// Decides who comes in, where the swarm is by invitation.
async fn open_admission(
    loaded: &Loaded,
    catalogue: &Arc<Catalogue>,
    me: PeerId,
) -> Result<Option<Arc<Admission>>, Failure> {
    let unreadable = |error| {
        Failure::from_error(Status::Failed, &error).context("the authority of the swarm cannot be read")
    };
    if !loaded.is_by_invitation() {
        // One tracker that lets everybody in would open the swarm of all.
        if catalogue.is_by_invitation().await.map_err(unreadable)? {
            let problem = "the swarm of this database is by invitation; set it to \"invited\", or take another database";
            return Err(loaded.refuse("swarm.admission", problem).into());
        }
        return Ok(None);
    }
    let opened = Admission::open(Arc::clone(catalogue), me, Arc::new(SystemClock)).await;
    opened.map(|admission| Some(Arc::new(admission))).map_err(unreadable)
}

/// The file that says where the tracker of a data folder listens, for ports that the system chose.
const ENDPOINTS: &str = "endpoints";

async fn note_endpoints(data_dir: &Path, endpoints: &[Endpoint]) {
    let lines: String = endpoints.iter().map(|endpoint| format!("{endpoint}\n")).collect();
    let draft = data_dir.join(format!("{ENDPOINTS}.new"));
    let written = async {
        tokio::fs::write(&draft, lines).await?;
        tokio::fs::rename(&draft, data_dir.join(ENDPOINTS)).await
    };
    if let Err(error) = written.await {
        tracing::warn!(%error, "where the tracker listens could not be noted for `enjambre status`");
    }
}

/// Where the tracker of a data folder listens, or listened last; none if it never did. Blocks shortly.
pub fn noted_endpoints(data_dir: &Path) -> Vec<Endpoint> {
    let Ok(text) = std::fs::read_to_string(data_dir.join(ENDPOINTS)) else { return Vec::new() };
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
