//! Peers of an invite-only swarm without a tracker, over an authenticated in-process network.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::advance;

use super::gate::MembershipGate;
use super::member_transport::MemberTransport;
use super::members::Members;
use super::store::MembershipStore;
use crate::library::{SWARM, revoked_keys, swarm_key};
use crate::membership::credentials::authority::Authority;
use crate::membership::credentials::revocations::{LISTED, Revocation, Revocations};
use enjambre_core::model::membership::{LIFE, Rights, SKEW, SignedMembership};
use enjambre_core::model::time::millis;
use enjambre_core::protocol::client::{CallError, call};
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{PeerStatus, Reply, Request};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::runtime::clock::Clock;
use enjambre_core::storage::memory::Disk;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{
    Batch, Connection, Deadline, Dialer, Durability, Endpoint, KeyPair, Listener, PeerInfo, ReplySink,
    RequestId, Storage, Transport, TransportError, UnixMillis,
};
use enjambre_testkit::clock::TimerClock;
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

const LIMIT: Deadline = Deadline::Total(Duration::from_secs(30));

/// Answers `status` and counts the requests. A `cancel` waits forever.
#[derive(Default)]
struct Counter(AtomicUsize);

#[async_trait]
impl Handler for Counter {
    async fn handle(
        &self,
        _: RequestId,
        request: Request,
        _: &PeerInfo,
        _: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if matches!(request, Request::Cancel { .. }) {
            let _ = Semaphore::new(0).acquire().await;
        }
        Ok((Reply::PeerStatus(PeerStatus::default()), Bytes::new()))
    }
}

struct World {
    network: MemoryNetwork,
    clock: Arc<dyn Clock>,
    start: UnixMillis,
    authority: Authority,
}

struct Peer {
    key: KeyPair,
    members: Arc<Members>,
    dialer: Dialer,
    listener: Arc<dyn Listener>,
    at: Endpoint,
    answered: Arc<Counter>,
}

impl World {
    fn new() -> Self {
        let authority = Authority::new(KeyPair::generate());
        let clock = Arc::new(TimerClock::new());
        Self { network: MemoryNetwork::new(), start: clock.now(), clock, authority }
    }

    fn membership(&self, key: &KeyPair) -> SignedMembership {
        self.authority.admit(key.peer_id(), Rights::Full, self.clock.now())
    }

    /// A version of the revocation list.
    fn version(&self, number: u64) -> u64 {
        self.start.get() + number
    }

    fn revocations(&self, number: u64, keys: &[&KeyPair]) -> Bytes {
        let version = self.version(number);
        let revocations = keys.iter().map(|key| Revocation { peer: key.peer_id(), version });
        Revocations::new(version, revocations).pages(UnixMillis(u64::MAX))[0].sign(&self.authority)
    }

    async fn members(&self, key: &KeyPair) -> Arc<Members> {
        Members::open(*self.authority.key(), key.peer_id(), Arc::clone(&self.clock), None).await.unwrap()
    }

    /// A peer with a membership.
    async fn peer(&self, name: &str) -> Peer {
        let key = KeyPair::generate();
        let members = self.members(&key).await;
        members.update(Some(&self.membership(&key)), None).await.unwrap();
        let transport = self.network.transport_of(key.peer_id());
        let listener = transport.bind(&format!("memory://{name}:1").parse().unwrap()).await.unwrap();
        let at = listener.local_endpoint().clone();
        let answered = Arc::new(Counter::default());
        let gate = MembershipGate::new(answered.clone(), Arc::clone(&members));
        tokio::spawn(serve(Arc::clone(&listener), Arc::new(gate)));
        let transport: Arc<dyn Transport> = Arc::new(MemberTransport::new(transport, Arc::clone(&members)));
        Peer { key, members, dialer: Dialer::new(vec![transport]), listener, at, answered }
    }

    /// A connection that does not present a membership.
    async fn unauthorized(&self, key: &KeyPair, to: &Peer) -> Arc<dyn Connection> {
        self.network.transport_of(key.peer_id()).connect(&to.at).await.unwrap()
    }
}

impl Peer {
    async fn request(&self, other: &Self) -> Result<(), CallError> {
        let connection = self.dialer.connect(&other.at).await?;
        call(&*connection, &Request::Status, LIMIT).await.map(drop)
    }

    fn answered(&self) -> usize {
        self.answered.0.load(Ordering::Relaxed)
    }
}

fn assert_not_admitted(result: Result<(), CallError>, reason: &str) {
    match result {
        Err(CallError::Transport(TransportError::NotAdmitted { problem, .. })) => {
            assert!(problem.contains(reason), "{problem}");
        }
        other => panic!("{other:?}"),
    }
}

async fn refused(connection: &dyn Connection, request: &Request) -> ErrorCode {
    match call(connection, request, LIMIT).await {
        Err(CallError::Remote { error, .. }) => error.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn members_authorize_each_connection_once() {
    let world = World::new();
    let (one, other) = (world.peer("one").await, world.peer("other").await);
    for n in 1..=3 {
        one.request(&other).await.unwrap();
        assert_eq!(other.answered(), n, "each request is answered once, including the first");
    }
    other.request(&one).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn non_member_is_refused_even_with_a_foreign_membership() {
    let world = World::new();
    let peer = world.peer("peer").await;
    let outsider = KeyPair::generate();
    let connection = world.unauthorized(&outsider, &peer).await;
    assert_eq!(refused(&*connection, &Request::Status).await, ErrorCode::Unauthorized);
    let foreign = Request::Authorize { membership: world.membership(&peer.key) };
    assert_eq!(refused(&*connection, &foreign).await, ErrorCode::Unauthorized);
    let forged =
        Authority::new(KeyPair::generate()).admit(outsider.peer_id(), Rights::Full, world.clock.now());
    assert_eq!(
        refused(&*connection, &Request::Authorize { membership: forged }).await,
        ErrorCode::Unauthorized
    );
    assert_eq!(refused(&*connection, &Request::Status).await, ErrorCode::Unauthorized);
    assert_eq!(peer.answered(), 0);
    // After too many attempts a valid membership is refused too, except on a new connection.
    assert_eq!(refused(&*connection, &foreign).await, ErrorCode::Unauthorized);
    let valid = Request::Authorize { membership: world.membership(&outsider) };
    assert_eq!(refused(&*connection, &valid).await, ErrorCode::Unauthorized);
    call(&*world.unauthorized(&outsider, &peer).await, &valid, LIMIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn replies_of_non_members_are_discarded() {
    let world = World::new();
    let peer = world.peer("peer").await;
    // It serves everyone and has no membership.
    let open = KeyPair::generate();
    let listener =
        world.network.transport_of(open.peer_id()).bind(&"memory://open:1".parse().unwrap()).await.unwrap();
    let at = listener.local_endpoint().clone();
    tokio::spawn(serve(listener, Arc::new(Counter::default())));
    let connection = peer.dialer.connect(&at).await.unwrap();
    assert_not_admitted(
        call(&*connection, &Request::Status, LIMIT).await.map(drop),
        "did not present a membership",
    );
    // Its membership ended.
    let late = world.peer("late").await;
    late.members.update(None, Some(&world.revocations(1, &[&late.key]))).await.unwrap();
    assert_not_admitted(peer.request(&late).await, "the remote has no valid membership");
}

#[tokio::test(start_paused = true)]
async fn revocation_closes_connections_on_both_sides() {
    let world = World::new();
    let (peer, revoked) = (world.peer("peer").await, world.peer("revoked").await);
    revoked.request(&peer).await.unwrap();
    peer.request(&revoked).await.unwrap();
    let connection = revoked.dialer.connect(&peer.at).await.unwrap();
    let waiting =
        tokio::spawn(async move { call(&*connection, &Request::Cancel { ids: Vec::new() }, LIMIT).await });
    tokio::task::yield_now().await;
    while peer.answered() < 2 {
        tokio::task::yield_now().await;
    }
    let (to_revoked, answered_before) = (peer.dialer.connect(&revoked.at).await.unwrap(), revoked.answered());
    let asking =
        tokio::spawn(async move { call(&*to_revoked, &Request::Cancel { ids: Vec::new() }, LIMIT).await });
    while revoked.answered() == answered_before {
        tokio::task::yield_now().await;
    }
    peer.members.update(None, Some(&world.revocations(1, &[&revoked.key]))).await.unwrap();
    let pending = waiting.await.unwrap();
    assert!(matches!(pending, Err(CallError::Transport(TransportError::Lost { .. }))), "{pending:?}");
    let asked = asking.await.unwrap();
    assert!(matches!(asked, Err(CallError::Transport(TransportError::Closed))), "{asked:?}");
    let answered = peer.answered();
    assert_not_admitted(revoked.request(&peer).await, "revoked");
    assert_eq!(peer.answered(), answered);
    assert_not_admitted(peer.request(&revoked).await, "revoked");
    // An older list, for example of a tracker that lags behind, has no effect.
    let other = KeyPair::generate();
    peer.members.update(None, Some(&world.revocations(2, &[&other]))).await.unwrap();
    peer.members.update(None, Some(&world.revocations(1, &[]))).await.unwrap();
    assert_eq!(peer.members.state().revocations, world.version(2));
    assert!(revoked.request(&peer).await.is_err() && peer.members.is_revoked(&other.peer_id()));
    // A version in the future is rejected, because it would hide all revocations until then. The membership is applied anyway.
    advance(Duration::from_secs(1)).await;
    let renewed = world.membership(&peer.key);
    let future = world.revocations(millis(LIFE) + 60_000, &[&other]);
    peer.members.update(Some(&renewed), Some(&future)).await.unwrap();
    assert_eq!((peer.members.own(), peer.members.state().revocations), (Some(renewed), world.version(2)));
    assert!(peer.members.update(None, Some(&Bytes::from_static(b"nonsense"))).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn peers_work_offline_until_memberships_expire() {
    let world = World::new();
    let (one, other) = (world.peer("one").await, world.peer("other").await);
    advance(LIFE - Duration::from_millis(1)).await;
    one.request(&other).await.unwrap();
    // A node does not use its own expired membership, although others tolerate clock differences.
    advance(Duration::from_millis(1)).await;
    assert_eq!(one.members.own(), None);
    one.request(&other).await.unwrap();
    advance(SKEW).await;
    assert_not_admitted(one.request(&other).await, "this peer has no valid membership");
    let renewed = world.membership(&one.key);
    one.members.update(Some(&renewed), None).await.unwrap();
    assert_not_admitted(one.request(&other).await, "the remote has no valid membership");
    other.members.update(Some(&world.membership(&other.key)), None).await.unwrap();
    one.request(&other).await.expect("the connection works with new memberships");
}

#[tokio::test(start_paused = true)]
async fn clock_differences_up_to_the_tolerance_are_accepted() {
    let world = World::new();
    let peer = world.peer("peer").await;
    let now = world.clock.now();
    for (from, valid) in [
        (now + SKEW, true),
        (now + SKEW + Duration::from_secs(1), false),
        (now - LIFE - SKEW + Duration::from_secs(1), true),
        (now - LIFE - SKEW, false),
    ] {
        let key = KeyPair::generate();
        let membership = world.authority.admit(key.peer_id(), Rights::Full, from);
        let connection = world.unauthorized(&key, &peer).await;
        let authorized = call(&*connection, &Request::Authorize { membership }, LIMIT).await;
        assert_eq!(authorized.is_ok(), valid, "{from:?} at {now:?}: {authorized:?}");
        if valid {
            call(&*connection, &Request::Status, LIMIT).await.unwrap();
        }
    }
    let key = KeyPair::generate();
    let membership = world.authority.admit(key.peer_id(), Rights::Full, now - LIFE);
    let connection = world.unauthorized(&key, &peer).await;
    call(&*connection, &Request::Authorize { membership }, LIMIT).await.unwrap();
    advance(SKEW).await;
    assert_eq!(refused(&*connection, &Request::Status).await, ErrorCode::Unauthorized);
}

#[tokio::test(start_paused = true)]
async fn restarted_peer_is_authorized_again() {
    let world = World::new();
    let (one, other) = (world.peer("one").await, world.peer("other").await);
    one.request(&other).await.unwrap();
    // After a restart it has no admitted peers and no connections.
    other.listener.shutdown(Duration::ZERO).await;
    let members = world.members(&other.key).await;
    members.update(Some(&world.membership(&other.key)), None).await.unwrap();
    let transport = world.network.transport_of(other.key.peer_id());
    let listener = transport.bind(&other.at).await.unwrap();
    tokio::spawn(serve(listener, Arc::new(MembershipGate::new(other.answered.clone(), members))));
    for n in 2..=3 {
        one.request(&other).await.unwrap();
        assert_eq!(other.answered(), n);
    }
}

#[tokio::test(start_paused = true)]
async fn membership_state_survives_a_restart() {
    let world = World::new();
    let (key, revoked) = (KeyPair::generate(), KeyPair::generate());
    let late = KeyPair::generate();
    let disk = Disk::new();
    let open = async |authority: &Authority| {
        let store = Some(MembershipStore::new(Arc::new(disk.open())));
        Members::open(*authority.key(), key.peer_id(), Arc::clone(&world.clock), store).await.unwrap()
    };
    let membership = world.membership(&key);
    open(&world.authority)
        .await
        .update(Some(&membership), Some(&world.revocations(3, &[&revoked])))
        .await
        .unwrap();
    let reopened = open(&world.authority).await;
    assert_eq!(reopened.own(), Some(membership));
    assert_eq!(reopened.state().revocations, world.version(3));
    assert!(reopened.is_revoked(&revoked.peer_id()));
    // A later page extends the list.
    reopened.update(None, Some(&world.revocations(5, &[&late]))).await.unwrap();
    let reopened = open(&world.authority).await;
    assert!(reopened.is_revoked(&revoked.peer_id()) && reopened.is_revoked(&late.peer_id()));
    advance(LIFE).await;
    assert_eq!(open(&world.authority).await.own(), None, "it expired");
    advance(LISTED).await;
    let later = open(&world.authority).await;
    assert!(!later.is_revoked(&revoked.peer_id()), "its revocation expired");
    later.update(None, Some(&world.revocations(2 * millis(LIFE), &[]))).await.unwrap();
    let stored = disk.open().scan(SWARM, revoked_keys(), 10).await.unwrap();
    assert_eq!(stored, [], "expired revocations are deleted");
    assert_eq!(later.state().revocations, world.version(2 * millis(LIFE)));
    let other = open(&Authority::new(KeyPair::generate())).await;
    assert_eq!((other.own(), other.state().revocations), (None, 0), "another swarm");
}

#[tokio::test(start_paused = true)]
async fn other_authority_or_damaged_head_resets_the_list() {
    let world = World::new();
    let (key, revoked) = (KeyPair::generate(), KeyPair::generate());
    let other = Authority::new(KeyPair::generate());
    for is_interrupted in [false, true] {
        let disk = Disk::new();
        let open = async |authority: &Authority, index: Arc<dyn Storage>| {
            let store = Some(MembershipStore::new(index));
            Members::open(*authority.key(), key.peer_id(), Arc::clone(&world.clock), store).await
        };
        let list = world.revocations(3, &[&revoked]);
        let members = open(&world.authority, Arc::new(disk.open())).await.unwrap();
        members.update(None, Some(&list)).await.unwrap();
        let faulty = FaultyStorage::new(Arc::new(disk.open()), 1);
        if is_interrupted {
            faulty.add(Operation::Commit, When::Nth(2), Fault::Unavailable);
        }
        assert_eq!(open(&other, Arc::new(faulty)).await.is_err(), is_interrupted);
        let reopened = open(&world.authority, Arc::new(disk.open())).await.unwrap();
        assert_eq!(reopened.state().revocations, 0, "it requests the whole list");
        reopened.update(None, Some(&list)).await.unwrap();
        assert!(reopened.is_revoked(&revoked.peer_id()));

        let mut batch = Batch::new();
        batch.put(SWARM, swarm_key("revocations"), Bytes::from_static(&[1; 100]));
        disk.open().commit(batch, Durability::Durable).await.unwrap();
        let reopened = open(&world.authority, Arc::new(disk.open())).await.unwrap();
        assert_eq!((reopened.state().revocations, reopened.is_revoked(&revoked.peer_id())), (0, false));
        assert_eq!(disk.open().get(SWARM, &[swarm_key("revocations")]).await.unwrap(), [None]);
    }
}

#[tokio::test(start_paused = true)]
async fn failed_save_is_repeated_with_the_next_update() {
    let world = World::new();
    let (key, first, second) = (KeyPair::generate(), KeyPair::generate(), KeyPair::generate());
    let disk = Disk::new();
    let faulty = Arc::new(FaultyStorage::new(Arc::new(disk.open()), 1));
    let store = |index: Arc<dyn Storage>| Some(MembershipStore::new(index));
    let open = async |index| {
        Members::open(*world.authority.key(), key.peer_id(), Arc::clone(&world.clock), store(index))
            .await
            .unwrap()
    };
    let members = open(faulty.clone() as Arc<dyn Storage>).await;
    faulty.add(Operation::Commit, When::Always, Fault::Full);
    members.update(None, Some(&world.revocations(1, &[&first]))).await.unwrap();
    assert!(members.is_revoked(&first.peer_id()), "it applies although it is not stored");
    faulty.clear();
    assert_eq!(faulty.scan(SWARM, revoked_keys(), 10).await.unwrap(), []);
    members.update(None, Some(&world.revocations(2, &[&second]))).await.unwrap();
    let reopened = open(Arc::new(disk.open())).await;
    assert_eq!(reopened.state().revocations, world.version(2));
    assert!(reopened.is_revoked(&first.peer_id()) && reopened.is_revoked(&second.peer_id()));
}
