//! Tests of trackers in an invite-only swarm, over an authenticated in-process network.

mod admission;
mod revocation;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalogue::Catalogue;
use crate::membership::member_transport::MemberTransport;
use crate::membership::members::Members;
use crate::tracker::admission::Admission;
use crate::tracker::gate::TrackerGate;
use crate::tracker::service::TrackerService;
use crate::tracker::settings::TrackerSettings;
use crate::tracker::tests::{FakeLibrary, endpoint};
use crate::tracker_client::client::TrackerClient;
use crate::tracker_client::error::TrackerError;
use crate::tracker_client::presence::Presence;
use crate::tracker_client::trackers::Trackers;
use enjambre_core::model::identity::PublicKey;
use enjambre_core::model::membership::Rights;
use enjambre_core::model::secret::Secret;
use enjambre_core::protocol::client::{CallError, call};
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::{self, Handler};
use enjambre_core::runtime::clock::Clock;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{
    Connection, ConnectionHandle, Deadline, Dialer, EncodedRequest, Endpoint, KeyPair, Memory, PeerInfo,
    ReplySink, RequestId, SessionId, Storage, Transport,
};
use enjambre_testkit::clock::TimerClock;
use enjambre_testkit::storage::fault::FaultyStorage;

struct Swarm {
    network: MemoryNetwork,
    clock: Arc<dyn Clock>,
    storage: Arc<FaultyStorage>,
}

struct Tracker {
    key: KeyPair,
    at: Endpoint,
    catalogue: Arc<Catalogue>,
    admission: Arc<Admission>,
    gate: Arc<dyn Handler>,
    /// The connection of each request, in order.
    connections: Arc<Mutex<Vec<ConnectionHandle>>>,
    _tasks: Vec<JoinHandle<()>>,
}

/// Records the connections of requests.
struct Recorder {
    inner: Arc<dyn Handler>,
    connections: Arc<Mutex<Vec<ConnectionHandle>>>,
}

#[async_trait::async_trait]
impl Handler for Recorder {
    fn answer_immediately(&self, request: &EncodedRequest, peer: &PeerInfo) -> Option<Bytes> {
        let answer = self.inner.answer_immediately(request, peer)?;
        self.connections.lock().push(peer.handle.clone());
        Some(answer)
    }

    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        self.connections.lock().push(peer.handle.clone());
        self.inner.handle(id, request, peer, sink).await
    }
}

impl Swarm {
    fn new() -> Self {
        Self {
            network: MemoryNetwork::new(),
            clock: Arc::new(TimerClock::new()),
            storage: Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1)),
        }
    }

    async fn tracker(&self, name: &str) -> Tracker {
        let settings = TrackerSettings::default();
        let storage: Arc<dyn Storage> = self.storage.clone();
        let catalogue = Arc::new(Catalogue::open(storage, settings.rules(), self.clock.now()).await.unwrap());
        let key = KeyPair::generate();
        let me = key.peer_id();
        let admission = Admission::open(Arc::clone(&catalogue), me, Arc::clone(&self.clock)).await.unwrap();
        let admission = Arc::new(admission);
        let service =
            TrackerService::new(Arc::clone(&catalogue), me, settings, Arc::clone(&self.clock), None);
        let service = Arc::new(service);
        let gate: Arc<dyn Handler> = Arc::new(TrackerGate::new(service.clone(), Arc::clone(&admission)));
        let listener =
            self.network.transport_of(me).bind(&endpoint(&format!("memory://{name}:1"))).await.unwrap();
        let at = listener.local_endpoint().clone();
        let run = {
            let admission = Arc::clone(&admission);
            async move {
                let shutdown = CancellationToken::new();
                tokio::join!(
                    service.run(shutdown.clone()),
                    admission.run(settings.flush_interval(), shutdown)
                );
            }
        };
        let connections = Arc::default();
        let recorder = Recorder { inner: Arc::clone(&gate), connections: Arc::clone(&connections) };
        let _tasks = vec![tokio::spawn(server::serve(listener, Arc::new(recorder))), tokio::spawn(run)];
        Tracker { key, at, catalogue, admission, gate, connections, _tasks }
    }

    fn dialer(&self, key: &KeyPair) -> Arc<Dialer> {
        Arc::new(Dialer::new(vec![self.network.transport_of(key.peer_id())]))
    }

    fn client(&self, key: &KeyPair, tracker: &Tracker) -> TrackerClient {
        TrackerClient::new(self.dialer(key), tracker.at.clone())
    }

    async fn invite(&self, tracker: &Tracker, rights: Rights, uses: u32) -> Secret {
        let secret = Secret::generate();
        let now = self.clock.now();
        tracker
            .catalogue
            .invite(secret.hash(), rights, uses, now + Duration::from_secs(3600), now)
            .await
            .unwrap();
        secret
    }

    /// The key of a new member.
    async fn member(&self, tracker: &Tracker, rights: Rights) -> KeyPair {
        let key = KeyPair::generate();
        let secret = self.invite(tracker, rights, 1).await;
        self.client(&key, tracker).join(secret).await.unwrap();
        key
    }

    async fn members(&self, authority: &PublicKey, key: &KeyPair) -> Arc<Members> {
        Members::open(*authority, key.peer_id(), Arc::clone(&self.clock), None).await.unwrap()
    }

    /// The presence of a member at a tracker, connected.
    async fn presence(&self, tracker: &Tracker, key: &KeyPair, members: &Arc<Members>) -> Presence {
        let trackers = Trackers::new(&self.dialer(key), [tracker.at.clone()]);
        let presence = Presence::start(
            Some(Arc::clone(members)),
            key.clone(),
            vec![endpoint("memory://peer:1")],
            &trackers,
            Arc::new(FakeLibrary::default()),
        );
        assert!(presence.wait_connected(Duration::from_secs(5)).await);
        presence
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, TrackerError>) -> Option<ErrorCode> {
    result.unwrap_err().code()
}

async fn open_session(client: &TrackerClient, key: &KeyPair) -> Result<SessionId, TrackerError> {
    Ok(client.open_session(None, key, &[endpoint("memory://peer:1")]).await?.1.session)
}

async fn refused(connection: &dyn Connection, request: &Request) -> ErrorReply {
    match call(connection, request, Deadline::Total(Duration::from_secs(30))).await {
        Err(CallError::Remote { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

fn transport(swarm: &Swarm, key: &KeyPair, members: &Arc<Members>) -> Arc<dyn Transport> {
    Arc::new(MemberTransport::new(swarm.network.transport_of(key.peer_id()), Arc::clone(members)))
}
