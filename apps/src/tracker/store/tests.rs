//! The rules of the copies that a tracker keeps, where they can be looked at from inside.

use enjambre_core::model::name::Name;
use enjambre_core::model::record::Publication;
use enjambre_core::protocol::message::SessionId;
use enjambre_core::publish::{PublishOptions, publish};
use enjambre_core::tracker::client::TrackerClient;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::config::load::Sources;
use crate::data_dir::DataDir;
use crate::tracker::TrackerNode;

/// Long enough for anything that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tracker that keeps copies, in this process.
struct World {
    node: TrackerNode,
    store: Arc<Store>,
    client: TrackerClient,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap()).await
    }

    async fn at(folder: TempDir) -> Self {
        let file = folder.path().join("enjambre.toml");
        std::fs::write(
            &file,
            "[tracker]\ndata_dir = \"data\"\nstore = { enabled = true, quota = \"1MiB\" }\n\
             [transport]\nlisten = [\"tcp://127.0.0.1:0\"]\n[download]\npatience = \"1h\"\n",
        )
        .unwrap();
        let registry = Registry::stock();
        let sources = Sources { file: Some(file), set: Vec::new() };
        let loaded = sources.load(Some(NodeKind::Tracker), &registry.backends()).unwrap();
        let data_dir = DataDir::try_own(&loaded.data_dir(NodeKind::Tracker)).unwrap().unwrap();
        let node = TrackerNode::start(&registry, &loaded, data_dir).await.unwrap();
        let client = TrackerClient::new(
            registry.dialer(&loaded, &KeyPair::generate()).unwrap(),
            node.endpoints()[0].clone(),
        );
        let store = Arc::clone(node.store.as_ref().unwrap());
        Self { node, store, client, folder }
    }

    /// A session of a new peer that can be reached there.
    async fn peer(&self, endpoint: &str) -> SessionId {
        let (_, welcome) =
            self.client.hello(&KeyPair::generate(), &[endpoint.parse().unwrap()]).await.unwrap();
        welcome.session
    }

    /// Publishes so many files that do not exist.
    async fn publish(&self, session: SessionId, count: u8) -> Vec<FileId> {
        let mut ids = Vec::new();
        for number in 0..count {
            let id = FileId::from_bytes([number; 32]);
            let name: Name = format!("file {number}").parse().unwrap();
            let file = Publication { name, id, size: 1, kind: FileKind::File };
            self.client.publish(session, &file).await.unwrap();
            ids.push(id);
        }
        ids
    }

    async fn stop(self) -> TempDir {
        drop(self.store);
        timeout(PATIENCE, self.node.stop()).await.expect("it stops");
        self.folder
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

/// An endpoint that takes connections and says nothing.
fn silent() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_nobody_offers_waits_without_a_slot() {
    let world = World::new().await;
    let session = world.peer("tcp://127.0.0.1:9").await;
    let ids = world.publish(session, 1).await;
    world.client.leave(session).await.unwrap();
    let slots = world.store.slots.acquire_many(AT_ONCE as u32).await.unwrap();
    let tried = timeout(PATIENCE, world.store.fetch_once(&ids[0])).await.expect("it needs no slot");
    assert!(matches!(tried, Ok(false)), "it is tried again: {tried:?}");
    drop(slots);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_copies_are_fetched_at_once_and_the_others_wait() {
    let world = World::new().await;
    let (_listener, endpoint) = silent();
    let session = world.peer(&endpoint).await;
    let ids = world.publish(session, AT_ONCE as u8 + 2).await;
    for id in &ids {
        world.client.pin(session, *id).await.unwrap();
    }
    until("all slots are taken", || world.store.slots.available_permits() == 0).await;
    assert_eq!(world.store.fetches.lock().len(), ids.len(), "the others are waiting");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_no_more_is_swept_at_the_start_and_what_is_stays() {
    let world = World::new().await;
    let session = world.peer("tcp://127.0.0.1:9").await;
    let mut ids = Vec::new();
    for name in ["kept", "left over"] {
        let path = world.folder.path().join(name);
        std::fs::write(&path, name).unwrap();
        let options = PublishOptions { store: true, ..PublishOptions::default() };
        let copy = publish(world.store.library(), &path, options, |_| {}).await.unwrap();
        let file = Publication { name: copy.name, id: copy.id, size: copy.size, kind: copy.kind };
        world.client.publish(session, &file).await.unwrap();
        ids.push(copy.id);
    }
    let catalogue = &world.store.catalogue;
    let me = world.store.key.peer_id();
    catalogue.pin(ids[0], 4, 1 << 20, me, SystemClock.now_ms()).await.unwrap();
    assert!(catalogue.set_held(&ids[0], true).await.unwrap());

    let world = World::at(world.stop().await).await;
    let library = world.store.library();
    until("the sweep", || library.entry(&ids[1]).is_none()).await;
    assert!(library.entry(&ids[0]).is_some_and(|entry| entry.is_complete()));
    world.stop().await;
}
