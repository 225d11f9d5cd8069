//! A swarm by invitation over a network in the process that authenticates: trackers, peers, and who is kept out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::admission::Admission;
use super::client::TrackerClient;
use super::error::TrackerError;
use super::gate::Gate;
use super::presence::Presence;
use super::service::TrackerService;
use super::settings::TrackerSettings;
use super::testing::{Shelf, endpoint, file, publication};
use super::trackers::Trackers;
use crate::admission::introducing::MemberTransport;
use crate::admission::members::Members;
use crate::catalogue::Catalogue;
use crate::catalogue::layout::{self, MEMBERS, META, REVOKED};
use crate::clock::{Clock, TimerClock};
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;
use crate::model::identity::{KeyPair, PublicKey};
use crate::protocol::client::{CallError, ask};
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{KnownSwarm, Reply, Request, SessionId};
use crate::protocol::server::{self, Handler};
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Durability};
use crate::swarm::authority::Authority;
use crate::swarm::invitation::Secret;
use crate::swarm::membership::{LIFE_MS, Rights};
use crate::swarm::revocations::{PAGE, RevocationPage};
use crate::transport::dialer::Dialer;
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::memory::MemoryNetwork;
use crate::transport::{
    Connection, ConnectionHandle, ConnectionId, Deadline, Message, PeerInfo, ReplySink, Transport,
};

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
    /// Of whatever was asked, in its order.
    connections: Arc<Mutex<Vec<ConnectionHandle>>>,
    _tasks: Vec<JoinHandle<()>>,
}

/// Notes the connections over which somebody asks.
struct Watched {
    inner: Arc<dyn Handler>,
    connections: Arc<Mutex<Vec<ConnectionHandle>>>,
}

#[async_trait::async_trait]
impl Handler for Watched {
    fn answer_at_once(&self, header: &[u8], peer: &PeerInfo) -> Option<Bytes> {
        let answer = self.inner.answer_at_once(header, peer)?;
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
        let catalogue =
            Arc::new(Catalogue::open(storage, settings.rules(), self.clock.now_ms()).await.unwrap());
        let key = KeyPair::generate();
        let me = key.peer_id();
        let admission = Admission::open(Arc::clone(&catalogue), me, Arc::clone(&self.clock)).await.unwrap();
        let admission = Arc::new(admission);
        let service = TrackerService::new(Arc::clone(&catalogue), settings, Arc::clone(&self.clock), None);
        let service = Arc::new(service);
        let gate: Arc<dyn Handler> = Arc::new(Gate::new(service.clone(), Arc::clone(&admission)));
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
        let watched = Watched { inner: Arc::clone(&gate), connections: Arc::clone(&connections) };
        let _tasks = vec![tokio::spawn(server::serve(listener, Arc::new(watched))), tokio::spawn(run)];
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
        let now = self.clock.now_ms();
        tracker.catalogue.invite(secret.hash(), rights, uses, now + 3_600_000, now).await.unwrap();
        secret
    }

    /// Somebody who is in.
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
        let presence = Presence::start_in(
            Some(Arc::clone(members)),
            key.clone(),
            vec![endpoint("memory://peer:1")],
            &trackers,
            Arc::new(Shelf::default()),
        );
        assert!(presence.connected(Duration::from_secs(5)).await);
        presence
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, TrackerError>) -> Option<ErrorCode> {
    result.unwrap_err().code()
}

async fn hello(client: &TrackerClient, key: &KeyPair) -> Result<SessionId, TrackerError> {
    Ok(client.hello(key, &[endpoint("memory://peer:1")]).await?.1.session)
}

#[tokio::test(start_paused = true)]
async fn a_stranger_gets_nothing_but_the_way_in() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let stranger = KeyPair::generate();
    let client = swarm.client(&stranger, &tracker);
    client.catalogue().await.expect("which catalogue it is is no secret");
    assert_eq!(code(client.find("a").await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.providers(&file(1)).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.list("", None, 10).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.status().await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(hello(&client, &stranger).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.join(Secret::generate()).await), Some(ErrorCode::Unauthorized));
    let secret = swarm.invite(&tracker, Rights::Full, 1).await;
    let membership = client.join(secret).await.unwrap();
    let now = swarm.clock.now_ms();
    let membership = membership.verify(tracker.admission.authority().key(), now).unwrap();
    assert_eq!((membership.peer, membership.rights), (stranger.peer_id(), Rights::Full));
    assert_eq!(client.list("", None, 10).await.unwrap().0, []);
    hello(&client, &stranger).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_tracker_has_in_memory_it_tells_to_members_alone() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (member, gone) =
        (swarm.member(&tracker, Rights::Full).await, swarm.member(&tracker, Rights::Full).await);
    let client = swarm.client(&member, &tracker);
    client.publish(hello(&client, &member).await.unwrap(), &publication("a", 1)).await.unwrap();
    client.find("a").await.unwrap();
    client.providers(&file(1)).await.unwrap();
    let thrown_out = swarm.client(&gone, &tracker);
    thrown_out.status().await.unwrap();
    for operation in [Operation::Get, Operation::Scan] {
        swarm.storage.add(operation, When::Always, Fault::Unavailable);
    }
    for client in [&client, &thrown_out] {
        client.find("a").await.expect("from memory");
        client.providers(&file(1)).await.expect("from memory");
    }
    swarm.storage.clear();
    tracker.catalogue.revoke(&gone.peer_id(), swarm.clock.now_ms()).await.unwrap();
    tracker.admission.refresh().await.unwrap();
    let stranger = swarm.client(&KeyPair::generate(), &tracker);
    for outside in [&stranger, &thrown_out] {
        assert_eq!(code(outside.find("a").await), Some(ErrorCode::Unauthorized));
        assert_eq!(code(outside.providers(&file(1)).await), Some(ErrorCode::Unauthorized));
    }
    client.find("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_is_good_for_its_own_key_alone() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (owner, other) =
        (swarm.member(&tracker, Rights::Full).await, swarm.member(&tracker, Rights::Full).await);
    let (client, thief) = (swarm.client(&owner, &tracker), swarm.client(&other, &tracker));
    let session = hello(&client, &owner).await.unwrap();
    client.publish(session, &publication("a", 1)).await.unwrap();
    let unauthorized = Some(ErrorCode::Unauthorized);
    assert_eq!(code(thief.publish(session, &publication("b", 2)).await), unauthorized);
    assert_eq!(code(thief.announce(session, &[super::testing::offer(1)]).await), unauthorized);
    assert_eq!(code(thief.withdraw(session, &[file(1)]).await), unauthorized);
    assert_eq!(code(thief.renew(session).await), unauthorized);
    assert_eq!(code(thief.renew_membership(session, KnownSwarm::default()).await), unauthorized);
    assert_eq!(code(thief.pin(session, file(1)).await), unauthorized);
    assert_eq!(code(thief.unpin(session, file(1)).await), unauthorized);
    assert_eq!(code(thief.leave(session).await), unauthorized);
    assert_eq!(client.providers(&file(1)).await.unwrap().len(), 1);
    assert_eq!(code(client.find("b").await), Some(ErrorCode::NotFound));
    client.renew(session).await.expect("for its own it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_asks_and_asks_does_not_keep_the_database_busy() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (stranger, member) = (KeyPair::generate(), swarm.member(&tracker, Rights::Full).await);
    let client = swarm.client(&stranger, &tracker);
    assert_eq!(code(client.status().await), Some(ErrorCode::Unauthorized));
    // So do one that introduces itself, and one that was thrown out.
    let now = swarm.clock.now_ms();
    let forger = Authority::new(KeyPair::generate());
    let gone = swarm.member(&tracker, Rights::Full).await;
    tracker.catalogue.revoke(&gone.peer_id(), now).await.unwrap();
    let mut introductions = Vec::new();
    for key in [&stranger, &gone] {
        let line = swarm.dialer(key).connect(&tracker.at).await.unwrap();
        let introduction = Request::Introduce { membership: forger.admit(key.peer_id(), Rights::Full, now) };
        assert_eq!(refused(&*line, &introduction).await.code, ErrorCode::Unauthorized);
        introductions.push((line, introduction));
    }
    // From here on whoever looks into the database hears that it is away.
    swarm.storage.add(Operation::Get, When::Always, Fault::Unavailable);
    let met = swarm.storage.faults_met();
    for _ in 0..100 {
        assert_eq!(code(client.find("a").await), Some(ErrorCode::Unauthorized));
        for (line, introduction) in &introductions {
            assert_eq!(refused(&**line, introduction).await.code, ErrorCode::Unauthorized);
        }
    }
    assert_eq!(swarm.storage.faults_met(), met);
    assert_eq!(code(swarm.client(&member, &tracker).status().await), Some(ErrorCode::Storage));
    // But only for a moment: meanwhile it may have come in elsewhere.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(code(client.status().await), Some(ErrorCode::Storage));
    swarm.storage.clear();
    assert_eq!(code(client.status().await), Some(ErrorCode::Unauthorized));
    let secret = swarm.invite(&tracker, Rights::Full, 1).await;
    swarm.client(&stranger, &tracker).join(secret).await.unwrap();
    client.status().await.expect("who came in is not refused any more, over whichever connection");
}

#[tokio::test(start_paused = true)]
async fn who_is_in_at_one_tracker_is_in_at_all_of_the_catalogue() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    assert_eq!(one.admission.authority().key(), other.admission.authority().key());
    let key = swarm.member(&one, Rights::Full).await;
    let client = swarm.client(&key, &other);
    let session = hello(&client, &key).await.unwrap();
    client.publish(session, &publication("a", 1)).await.unwrap();
    assert_eq!(swarm.client(&key, &one).find("a").await.unwrap().publisher, key.peer_id());
}

#[tokio::test(start_paused = true)]
async fn the_trackers_of_a_swarm_let_each_other_in_for_the_copies_that_they_keep() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    let status = async |members: &Arc<Members>, key: &KeyPair, at: &Tracker| {
        let transport = self::transport(&swarm, key, members);
        let connection = Dialer::new(vec![transport]).connect(&at.at).await.unwrap();
        ask(&*connection, &Request::Status, Deadline::Total(Duration::from_secs(30))).await.map(drop)
    };
    // As the store of a tracker, which has its membership of its own tracker.
    let members = swarm.members(one.admission.authority().key(), &one.key).await;
    members.take(Some(&one.admission.own_membership()), None).await.unwrap();
    for _ in 0..3 {
        status(&members, &one.key, &other).await.expect("as somebody whom the database does not know");
    }
    // A membership of somebody else or of another authority does not make a tracker of a stranger.
    let stranger = KeyPair::generate();
    let forger = Authority::new(KeyPair::generate());
    let forged = forger.admit(stranger.peer_id(), Rights::Full, swarm.clock.now_ms());
    let client = swarm.dialer(&stranger).connect(&other.at).await.unwrap();
    for membership in [forged, one.admission.own_membership()] {
        let error = refused(&*client, &Request::Introduce { membership }).await;
        assert_eq!(error.code, ErrorCode::Unauthorized);
    }
    // Nor does one that was good let in who was thrown out, however long ago that was.
    let gone = swarm.member(&one, Rights::Full).await;
    let membership = one.admission.membership(&gone.peer_id()).await.unwrap();
    one.catalogue.revoke(&gone.peer_id(), swarm.clock.now_ms()).await.unwrap();
    let client = swarm.dialer(&gone).connect(&other.at).await.unwrap();
    let error = refused(&*client, &Request::Introduce { membership }).await;
    assert!(error.message.contains("thrown out"), "{error}");
}

async fn refused(connection: &dyn Connection, request: &Request) -> ErrorReply {
    match ask(connection, request, Deadline::Total(Duration::from_secs(30))).await {
        Err(CallError::Remote { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

fn transport(swarm: &Swarm, key: &KeyPair, members: &Arc<Members>) -> Arc<dyn Transport> {
    Arc::new(MemberTransport::new(swarm.network.transport_of(key.peer_id()), Arc::clone(members)))
}

#[tokio::test(start_paused = true)]
async fn who_may_only_download_offers_what_it_has_and_does_not_publish() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (writer, reader) =
        (swarm.member(&tracker, Rights::Full).await, swarm.member(&tracker, Rights::ReadOnly).await);
    let client = swarm.client(&writer, &tracker);
    client.publish(hello(&client, &writer).await.unwrap(), &publication("a", 1)).await.unwrap();
    let client = swarm.client(&reader, &tracker);
    let session = hello(&client, &reader).await.unwrap();
    assert_eq!(code(client.publish(session, &publication("b", 2)).await), Some(ErrorCode::Forbidden));
    assert_eq!(code(client.pin(session, file(1)).await), Some(ErrorCode::Forbidden));
    assert_eq!(client.announce(session, &[super::testing::offer(1)]).await.unwrap(), []);
    assert_eq!(client.providers(&file(1)).await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn memberships_and_revocations_come_with_renewals_when_they_are_news() {
    let swarm = Swarm::new();
    let (tracker, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    let authority = *tracker.admission.authority().key();
    let key = swarm.member(&tracker, Rights::Full).await;
    let gone = swarm.member(&tracker, Rights::Full).await;
    let client = swarm.client(&key, &tracker);
    let session = hello(&client, &key).await.unwrap();
    let mut known = KnownSwarm::default();
    let news = client.renew_membership(session, known).await.unwrap();
    known.until = news.membership.unwrap().verify(&authority, swarm.clock.now_ms()).unwrap().until;
    assert_eq!(client.renew_membership(session, known).await.unwrap(), Default::default());
    other.catalogue.revoke(&gone.peer_id(), swarm.clock.now_ms()).await.unwrap();
    // The other tracker did it; this one hears of it.
    sleep(Duration::from_secs(6)).await;
    let news = client.renew_membership(session, known).await.unwrap();
    let page = RevocationPage::verify(&news.revocations.unwrap(), &authority).unwrap();
    assert!(page.revocations()[0].peer == gone.peer_id() && news.membership.is_none() && !news.more);
    known.revocations = page.version();
    assert_eq!(client.renew_membership(session, known).await.unwrap(), Default::default());
    // Long before it ends there is another one.
    known.until = swarm.clock.now_ms() + LIFE_MS / 2 - 1;
    assert!(client.renew_membership(session, known).await.unwrap().membership.is_some());
}

#[tokio::test(start_paused = true)]
async fn who_is_thrown_out_is_refused_at_every_tracker_within_moments() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    let key = swarm.member(&one, Rights::Full).await;
    let clients = [swarm.client(&key, &one), swarm.client(&key, &other)];
    for client in &clients {
        client.status().await.unwrap();
    }
    // One that asks nothing, at the tracker that hears of it later.
    let idle = swarm.dialer(&key).connect(&other.at).await.unwrap();
    ask(&*idle, &Request::Status, Deadline::Total(Duration::from_secs(1))).await.unwrap();
    let ended = other.connections.lock().last().unwrap().clone();
    let session = hello(&clients[1], &key).await.unwrap();
    one.catalogue.revoke(&key.peer_id(), swarm.clock.now_ms()).await.unwrap();
    one.admission.refresh().await.unwrap();
    assert_eq!(code(clients[0].status().await), Some(ErrorCode::Unauthorized), "at once");
    assert!(!ended.is_closed());
    sleep(Duration::from_secs(6)).await;
    assert!(ended.is_closed(), "what was open is closed, also where nothing goes over it");
    assert_eq!(code(clients[1].status().await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(clients[1].renew(session).await), Some(ErrorCode::Unauthorized));
    assert_eq!(
        code(hello(&swarm.client(&key, &one), &key).await),
        Some(ErrorCode::Unauthorized),
        "over a new one"
    );
}

#[tokio::test(start_paused = true)]
async fn an_old_copy_of_the_database_lets_nobody_in_who_was_thrown_out_since() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let key = swarm.member(&tracker, Rights::Full).await;
    let member = swarm.storage.get(MEMBERS, &[layout::peer_id_key(&key.peer_id())]).await.unwrap().remove(0);
    tracker.catalogue.revoke(&key.peer_id(), swarm.clock.now_ms()).await.unwrap();
    tracker.admission.refresh().await.unwrap();
    let mut batch = Batch::new();
    batch.put(MEMBERS, layout::peer_id_key(&key.peer_id()), member.unwrap());
    batch.delete(REVOKED, layout::peer_id_key(&key.peer_id()));
    batch.delete(META, layout::meta_key("revocations"));
    swarm.storage.commit(batch, Durability::Durable).await.unwrap();
    // It does not read what is older again and again.
    swarm.storage.add(Operation::Scan, When::Always, Fault::Unavailable);
    tracker.admission.refresh().await.unwrap();
    swarm.storage.clear();
    assert_eq!(code(swarm.client(&key, &tracker).status().await), Some(ErrorCode::Unauthorized));
    // Nor when somebody else is thrown out, and the list is newer again.
    let another = swarm.member(&tracker, Rights::Full).await;
    tracker.catalogue.revoke(&another.peer_id(), swarm.clock.now_ms() + 1).await.unwrap();
    tracker.admission.refresh().await.unwrap();
    for key in [&key, &another] {
        assert_eq!(code(swarm.client(key, &tracker).status().await), Some(ErrorCode::Unauthorized));
    }
}

#[tokio::test(start_paused = true)]
async fn a_presence_keeps_the_membership_new_and_hears_of_revocations_within_a_lease() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let key = swarm.member(&tracker, Rights::Full).await;
    let gone = swarm.member(&tracker, Rights::Full).await.peer_id();
    let members = swarm.members(tracker.admission.authority().key(), &key).await;
    let presence = swarm.presence(&tracker, &key, &members).await;
    assert!(members.own_within(Duration::from_secs(1)).await.is_some());
    tracker.catalogue.revoke(&gone, swarm.clock.now_ms()).await.unwrap();
    assert!(!members.is_revoked(&gone));
    sleep(TrackerSettings::default().lease).await;
    assert!(members.is_revoked(&gone));
    for _ in 0..5 {
        sleep(Duration::from_millis(LIFE_MS / 3)).await;
        assert!(members.own().is_some(), "it is renewed long before it ends");
    }
    tracker.catalogue.revoke(&key.peer_id(), swarm.clock.now_ms()).await.unwrap();
    sleep(TrackerSettings::default().lease).await;
    let status = presence.status();
    assert!(status[0].last_error.as_ref().is_some_and(|error| error.contains("thrown out")), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn however_many_are_thrown_out_everybody_hears_of_all_within_a_lease() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let key = swarm.member(&tracker, Rights::Full).await;
    let members = swarm.members(tracker.admission.authority().key(), &key).await;
    let _presence = swarm.presence(&tracker, &key, &members).await;
    // More pages than there are renewals in a lease.
    let now = swarm.clock.now_ms();
    let mut gone: Vec<PeerId> = (0..4 * PAGE).map(|_| PeerId::from_bytes(rand::random())).collect();
    for (page, peers) in gone.chunks(PAGE).enumerate() {
        let mut batch = Batch::new();
        for (n, peer) in peers.iter().enumerate() {
            let version = now - (4 - page) as u64 * PAGE as u64 + n as u64;
            batch.put(REVOKED, layout::peer_id_key(peer), layout::number(version));
        }
        swarm.storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    let last = swarm.member(&tracker, Rights::Full).await.peer_id();
    tracker.catalogue.revoke(&last, now).await.unwrap();
    gone.push(last);
    sleep(TrackerSettings::default().lease).await;
    let missing = gone.iter().filter(|peer| !members.is_revoked(peer)).count();
    assert_eq!(missing, 0, "of {}", gone.len());
}

/// A request that nobody sent over a network.
#[derive(Debug)]
struct Nowhere;

#[async_trait::async_trait]
impl ReplySink for Nowhere {
    async fn reserve(&mut self, _: usize) -> Result<(), TransportError> {
        Ok(())
    }

    async fn send(self: Box<Self>, _: Message) -> Result<(), TransportError> {
        Ok(())
    }
}

async fn join_from(
    gate: &dyn Handler,
    address: [u8; 4],
    identity: Option<PeerId>,
    secret: Secret,
) -> Result<(Reply, Bytes), ErrorReply> {
    let (connection, handle) = (ConnectionId::next(), ConnectionHandle::default());
    let peer = PeerInfo { connection, handle, address: Some(address.into()), identity };
    gate.handle(RequestId(1), Request::Join { secret }, &peer, &mut Nowhere).await
}

#[tokio::test(start_paused = true)]
async fn wrong_invitations_are_paced_by_address_and_nobody_joins_without_an_identity() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let good = swarm.invite(&tracker, Rights::Full, 2).await;
    let (near, far) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let peer = Some(KeyPair::generate().peer_id());
    let code = |joined: Result<_, ErrorReply>| joined.unwrap_err().code;
    assert_eq!(code(join_from(&*tracker.gate, far, None, good).await), ErrorCode::Unauthorized);
    let mut tried = 0;
    while code(join_from(&*tracker.gate, near, peer, Secret::generate()).await) == ErrorCode::Unauthorized {
        tried += 1;
        assert!(tried <= 10, "one address tries on and on");
    }
    assert_eq!(tried, 10);
    assert_eq!(code(join_from(&*tracker.gate, near, peer, good).await), ErrorCode::Busy);
    join_from(&*tracker.gate, far, peer, good).await.expect("other addresses are not held up");
    sleep(Duration::from_secs(10)).await;
    join_from(&*tracker.gate, near, peer, good).await.expect("later it may try again");
    // Nor does somebody guess who is in already; but it may come again by what let it in.
    for _ in 0..20 {
        join_from(&*tracker.gate, far, peer, good).await.unwrap();
    }
    for _ in 0..10 {
        join_from(&*tracker.gate, far, peer, Secret::generate()).await.unwrap();
    }
    assert_eq!(code(join_from(&*tracker.gate, far, peer, Secret::generate()).await), ErrorCode::Busy);
}
