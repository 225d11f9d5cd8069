//! Peers of a swarm by invitation among themselves, without any tracker: over a network in the process that authenticates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::advance;

use super::door::Door;
use super::introducing::MemberTransport;
use super::kept::Kept;
use super::members::Members;
use crate::clock::{Clock, TimerClock};
use crate::library::{SWARM, revoked_keys, swarm_key};
use crate::model::endpoint::Endpoint;
use crate::model::identity::KeyPair;
use crate::protocol::client::{CallError, ask};
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{PeerStatus, Reply, Request};
use crate::protocol::server::{Handler, serve};
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Disk;
use crate::storage::value::{Batch, Durability};
use crate::swarm::authority::Authority;
use crate::swarm::membership::{LIFE_MS, Rights, SKEW_MS, SignedMembership};
use crate::swarm::revocations::{LISTED_MS, Revocation, Revocations};
use crate::transport::dialer::Dialer;
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::memory::MemoryNetwork;
use crate::transport::{Connection, Deadline, Listener, PeerInfo, ReplySink, Transport};

const LIMIT: Deadline = Deadline::Total(Duration::from_secs(30));

/// Answers `status`, and counts how many requests came this far. A `cancel` waits for ever.
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
    begun: u64,
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
        Self { network: MemoryNetwork::new(), begun: clock.now_ms(), clock, authority }
    }

    fn membership(&self, key: &KeyPair) -> SignedMembership {
        self.authority.admit(key.peer_id(), Rights::Full, self.clock.now_ms())
    }

    /// A version of the list of revocations.
    fn version(&self, number: u64) -> u64 {
        self.begun + number
    }

    fn revoked(&self, number: u64, keys: &[&KeyPair]) -> Bytes {
        let version = self.version(number);
        let revocations = keys.iter().map(|key| Revocation { peer: key.peer_id(), version });
        self.authority.sign_revocations(&Revocations::new(version, revocations).pages(u64::MAX)[0])
    }

    async fn members(&self, key: &KeyPair) -> Arc<Members> {
        Members::open(*self.authority.key(), key.peer_id(), Arc::clone(&self.clock), None).await.unwrap()
    }

    /// A peer with a membership.
    async fn peer(&self, name: &str) -> Peer {
        let key = KeyPair::generate();
        let members = self.members(&key).await;
        members.take(Some(&self.membership(&key)), None).await.unwrap();
        let transport = self.network.transport_of(key.peer_id());
        let listener = transport.bind(&format!("memory://{name}:1").parse().unwrap()).await.unwrap();
        let at = listener.local_endpoint().clone();
        let answered = Arc::new(Counter::default());
        let door = Door::new(answered.clone(), Arc::clone(&members));
        tokio::spawn(serve(Arc::clone(&listener), Arc::new(door)));
        let transport: Arc<dyn Transport> = Arc::new(MemberTransport::new(transport, Arc::clone(&members)));
        Peer { key, members, dialer: Dialer::new(vec![transport]), listener, at, answered }
    }

    /// A connection of somebody who does not introduce itself.
    async fn bare(&self, key: &KeyPair, to: &Peer) -> Arc<dyn Connection> {
        self.network.transport_of(key.peer_id()).connect(&to.at).await.unwrap()
    }
}

impl Peer {
    async fn ask(&self, other: &Self) -> Result<(), CallError> {
        let connection = self.dialer.connect(&other.at).await?;
        ask(&*connection, &Request::Status, LIMIT).await.map(drop)
    }

    fn answered(&self) -> usize {
        self.answered.0.load(Ordering::Relaxed)
    }
}

fn not_admitted(result: Result<(), CallError>, why: &str) {
    match result {
        Err(CallError::Transport(TransportError::NotAdmitted { problem, .. })) => {
            assert!(problem.contains(why), "{problem}");
        }
        other => panic!("{other:?}"),
    }
}

async fn refused(connection: &dyn Connection, request: &Request) -> ErrorCode {
    match ask(connection, request, LIMIT).await {
        Err(CallError::Remote { error, .. }) => error.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn members_answer_each_other_and_introduce_themselves_once_for_each_connection() {
    let world = World::new();
    let (one, other) = (world.peer("one").await, world.peer("other").await);
    for n in 1..=3 {
        one.ask(&other).await.unwrap();
        assert_eq!(other.answered(), n, "each request is answered once, the first one too");
    }
    other.ask(&one).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_not_answered_and_not_with_the_membership_of_somebody_else() {
    let world = World::new();
    let peer = world.peer("peer").await;
    let stranger = KeyPair::generate();
    let connection = world.bare(&stranger, &peer).await;
    assert_eq!(refused(&*connection, &Request::Status).await, ErrorCode::Unauthorized);
    let stolen = Request::Introduce { membership: world.membership(&peer.key) };
    assert_eq!(refused(&*connection, &stolen).await, ErrorCode::Unauthorized);
    let forged =
        Authority::new(KeyPair::generate()).admit(stranger.peer_id(), Rights::Full, world.clock.now_ms());
    assert_eq!(
        refused(&*connection, &Request::Introduce { membership: forged }).await,
        ErrorCode::Unauthorized
    );
    assert_eq!(refused(&*connection, &Request::Status).await, ErrorCode::Unauthorized);
    assert_eq!(peer.answered(), 0);
    // After too many of them not even a good one is looked at; a new connection begins anew.
    assert_eq!(refused(&*connection, &stolen).await, ErrorCode::Unauthorized);
    let good = Request::Introduce { membership: world.membership(&stranger) };
    assert_eq!(refused(&*connection, &good).await, ErrorCode::Unauthorized);
    ask(&*world.bare(&stranger, &peer).await, &good, LIMIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_from_a_peer_without_a_membership() {
    let world = World::new();
    let peer = world.peer("peer").await;
    // It lets everybody in, and has no membership itself.
    let open = KeyPair::generate();
    let listener =
        world.network.transport_of(open.peer_id()).bind(&"memory://open:1".parse().unwrap()).await.unwrap();
    let at = listener.local_endpoint().clone();
    tokio::spawn(serve(listener, Arc::new(Counter::default())));
    let connection = peer.dialer.connect(&at).await.unwrap();
    not_admitted(ask(&*connection, &Request::Status, LIMIT).await.map(drop), "does not introduce itself");
    // One whose own has ended.
    let late = world.peer("late").await;
    late.members.take(None, Some(&world.revoked(1, &[&late.key]))).await.unwrap();
    not_admitted(peer.ask(&late).await, "no membership itself");
}

#[tokio::test(start_paused = true)]
async fn what_is_open_to_somebody_who_is_thrown_out_is_closed_on_both_sides() {
    let world = World::new();
    let (peer, gone) = (world.peer("peer").await, world.peer("gone").await);
    gone.ask(&peer).await.unwrap();
    peer.ask(&gone).await.unwrap();
    let connection = gone.dialer.connect(&peer.at).await.unwrap();
    let waiting =
        tokio::spawn(async move { ask(&*connection, &Request::Cancel { ids: Vec::new() }, LIMIT).await });
    tokio::task::yield_now().await;
    while peer.answered() < 2 {
        tokio::task::yield_now().await;
    }
    let (to_gone, gone_at) = (peer.dialer.connect(&gone.at).await.unwrap(), gone.answered());
    let asking =
        tokio::spawn(async move { ask(&*to_gone, &Request::Cancel { ids: Vec::new() }, LIMIT).await });
    while gone.answered() == gone_at {
        tokio::task::yield_now().await;
    }
    peer.members.take(None, Some(&world.revoked(1, &[&gone.key]))).await.unwrap();
    let under_way = waiting.await.unwrap();
    assert!(matches!(under_way, Err(CallError::Transport(TransportError::Lost { .. }))), "{under_way:?}");
    let asked = asking.await.unwrap();
    assert!(matches!(asked, Err(CallError::Transport(TransportError::Closed))), "{asked:?}");
    let answered = peer.answered();
    not_admitted(gone.ask(&peer).await, "thrown out");
    assert_eq!(peer.answered(), answered);
    not_admitted(peer.ask(&gone).await, "thrown out");
    // An older list, as from a tracker that lags behind, changes nothing.
    let other = KeyPair::generate();
    peer.members.take(None, Some(&world.revoked(2, &[&other]))).await.unwrap();
    peer.members.take(None, Some(&world.revoked(1, &[]))).await.unwrap();
    assert_eq!(peer.members.known().revocations, world.version(2));
    assert!(gone.ask(&peer).await.is_err() && peer.members.is_revoked(&other.peer_id()));
    // Nor does one of a time that is not yet: whatever comes until then would be passed over. What comes with it counts.
    advance(Duration::from_secs(1)).await;
    let renewed = world.membership(&peer.key);
    let future = world.revoked(LIFE_MS + 60_000, &[&other]);
    peer.members.take(Some(&renewed), Some(&future)).await.unwrap();
    assert_eq!((peer.members.own(), peer.members.known().revocations), (Some(renewed), world.version(2)));
    assert!(peer.members.take(None, Some(&Bytes::from_static(b"nonsense"))).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_cut_off_from_all_trackers_goes_on_until_memberships_end() {
    let world = World::new();
    let (one, other) = (world.peer("one").await, world.peer("other").await);
    advance(Duration::from_millis(LIFE_MS - 1)).await;
    one.ask(&other).await.unwrap();
    // Its own clock says that its own is over, though others would still take it.
    advance(Duration::from_millis(1)).await;
    assert_eq!(one.members.own(), None);
    one.ask(&other).await.unwrap();
    advance(Duration::from_millis(SKEW_MS)).await;
    not_admitted(one.ask(&other).await, "no valid membership");
    let renewed = world.membership(&one.key);
    one.members.take(Some(&renewed), None).await.unwrap();
    not_admitted(one.ask(&other).await, "no membership itself");
    other.members.take(Some(&world.membership(&other.key)), None).await.unwrap();
    one.ask(&other).await.expect("with new ones they go on, over the same connection");
}

#[tokio::test(start_paused = true)]
async fn clocks_may_differ_by_some_minutes() {
    let world = World::new();
    let peer = world.peer("peer").await;
    let now = world.clock.now_ms();
    for (from, good) in [
        (now + SKEW_MS, true),
        (now + SKEW_MS + 1000, false),
        (now - LIFE_MS - SKEW_MS + 1000, true),
        (now - LIFE_MS - SKEW_MS, false),
    ] {
        let key = KeyPair::generate();
        let membership = world.authority.admit(key.peer_id(), Rights::Full, from);
        let connection = world.bare(&key, &peer).await;
        let introduced = ask(&*connection, &Request::Introduce { membership }, LIMIT).await;
        assert_eq!(introduced.is_ok(), good, "{from} at {now}: {introduced:?}");
        // And it is let out when its time is over.
        if good {
            ask(&*connection, &Request::Status, LIMIT).await.unwrap();
        }
    }
    let key = KeyPair::generate();
    let membership = world.authority.admit(key.peer_id(), Rights::Full, now - LIFE_MS);
    let connection = world.bare(&key, &peer).await;
    ask(&*connection, &Request::Introduce { membership }, LIMIT).await.unwrap();
    advance(Duration::from_millis(SKEW_MS)).await;
    assert_eq!(refused(&*connection, &Request::Status).await, ErrorCode::Unauthorized);
}

#[tokio::test(start_paused = true)]
async fn who_was_forgotten_introduces_itself_again() {
    let world = World::new();
    let (one, other) = (world.peer("one").await, world.peer("other").await);
    one.ask(&other).await.unwrap();
    // It starts anew: nobody is known to it, and the connection is another one.
    other.listener.shutdown(Duration::ZERO).await;
    let members = world.members(&other.key).await;
    members.take(Some(&world.membership(&other.key)), None).await.unwrap();
    let transport = world.network.transport_of(other.key.peer_id());
    let listener = transport.bind(&other.at).await.unwrap();
    tokio::spawn(serve(listener, Arc::new(Door::new(other.answered.clone(), members))));
    for n in 2..=3 {
        one.ask(&other).await.unwrap();
        assert_eq!(other.answered(), n);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_the_swarm_survives_a_restart() {
    let world = World::new();
    let (key, gone) = (KeyPair::generate(), KeyPair::generate());
    let late = KeyPair::generate();
    let disk = Disk::new();
    let open = async |authority: &Authority| {
        let kept = Some(Kept::new(Arc::new(disk.open())));
        Members::open(*authority.key(), key.peer_id(), Arc::clone(&world.clock), kept).await.unwrap()
    };
    let membership = world.membership(&key);
    open(&world.authority).await.take(Some(&membership), Some(&world.revoked(3, &[&gone]))).await.unwrap();
    let again = open(&world.authority).await;
    assert_eq!(again.own(), Some(membership));
    assert_eq!(again.known().revocations, world.version(3));
    assert!(again.is_revoked(&gone.peer_id()));
    // A page of later ones comes on top.
    again.take(None, Some(&world.revoked(5, &[&late]))).await.unwrap();
    let again = open(&world.authority).await;
    assert!(again.is_revoked(&gone.peer_id()) && again.is_revoked(&late.peer_id()));
    advance(Duration::from_millis(LIFE_MS)).await;
    assert_eq!(open(&world.authority).await.own(), None, "it is over");
    advance(Duration::from_millis(LISTED_MS)).await;
    let later = open(&world.authority).await;
    assert!(!later.is_revoked(&gone.peer_id()), "its memberships are over everywhere");
    later.take(None, Some(&world.revoked(2 * LIFE_MS, &[]))).await.unwrap();
    let kept = disk.open().scan(SWARM, revoked_keys(), 10).await.unwrap();
    assert_eq!(kept, [], "nothing is kept for ever");
    assert_eq!(later.known().revocations, world.version(2 * LIFE_MS));
    let elsewhere = open(&Authority::new(KeyPair::generate())).await;
    assert_eq!((elsewhere.own(), elsewhere.known().revocations), (None, 0), "of another swarm");
}

#[tokio::test(start_paused = true)]
async fn a_start_with_another_authority_or_an_older_head_forgets_the_list_and_its_version() {
    let world = World::new();
    let (key, gone) = (KeyPair::generate(), KeyPair::generate());
    let other = Authority::new(KeyPair::generate());
    for cut_short in [false, true] {
        let disk = Disk::new();
        let open = async |authority: &Authority, index: Arc<dyn Storage>| {
            let kept = Some(Kept::new(index));
            Members::open(*authority.key(), key.peer_id(), Arc::clone(&world.clock), kept).await
        };
        let list = world.revoked(3, &[&gone]);
        let members = open(&world.authority, Arc::new(disk.open())).await.unwrap();
        members.take(None, Some(&list)).await.unwrap();
        // Also where the start does not come to its end.
        let faulty = FaultyStorage::new(Arc::new(disk.open()), 1);
        if cut_short {
            faulty.add(Operation::Commit, When::Nth(2), Fault::Unavailable);
        }
        assert_eq!(open(&other, Arc::new(faulty)).await.is_err(), cut_short);
        let again = open(&world.authority, Arc::new(disk.open())).await.unwrap();
        assert_eq!(again.known().revocations, 0, "it is told the whole list");
        again.take(None, Some(&list)).await.unwrap();
        assert!(again.is_revoked(&gone.peer_id()));

        let mut batch = Batch::new();
        batch.put(SWARM, swarm_key("revocations"), Bytes::from_static(&[1; 100]));
        disk.open().commit(batch, Durability::Durable).await.unwrap();
        let again = open(&world.authority, Arc::new(disk.open())).await.unwrap();
        assert_eq!((again.known().revocations, again.is_revoked(&gone.peer_id())), (0, false));
        assert_eq!(disk.open().get(SWARM, &[swarm_key("revocations")]).await.unwrap(), [None]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_kept_is_kept_with_what_comes_next() {
    let world = World::new();
    let (key, first, second) = (KeyPair::generate(), KeyPair::generate(), KeyPair::generate());
    let disk = Disk::new();
    let faulty = Arc::new(FaultyStorage::new(Arc::new(disk.open()), 1));
    let kept = |index: Arc<dyn Storage>| Some(Kept::new(index));
    let open = async |index| {
        Members::open(*world.authority.key(), key.peer_id(), Arc::clone(&world.clock), kept(index))
            .await
            .unwrap()
    };
    let members = open(faulty.clone() as Arc<dyn Storage>).await;
    faulty.add(Operation::Commit, When::Always, Fault::Full);
    members.take(None, Some(&world.revoked(1, &[&first]))).await.unwrap();
    assert!(members.is_revoked(&first.peer_id()), "it counts all the same");
    faulty.clear();
    assert_eq!(faulty.scan(SWARM, revoked_keys(), 10).await.unwrap(), []);
    members.take(None, Some(&world.revoked(2, &[&second]))).await.unwrap();
    let again = open(Arc::new(disk.open())).await;
    assert_eq!(again.known().revocations, world.version(2));
    assert!(again.is_revoked(&first.peer_id()) && again.is_revoked(&second.peer_id()));
}
