//! Tests of the admission of peers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::{Swarm, Tracker, code, open_session, refused, transport};
use crate::membership::credentials::authority::Authority;
use crate::membership::members::Members;
use crate::tracker::tests::{NullSink, file, offer, publication};
use enjambre_core::model::membership::Rights;
use enjambre_core::model::secret::Secret;
use enjambre_core::protocol::client::call;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{MembershipState, Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{ConnectionHandle, ConnectionId, Deadline, Dialer, KeyPair, PeerId, PeerInfo, RequestId};
use enjambre_testkit::storage::fault::{Fault, Operation, When};

#[tokio::test(start_paused = true)]
async fn non_member_can_only_query_the_catalogue_and_join() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let outsider = KeyPair::generate();
    let client = swarm.client(&outsider, &tracker);
    client.catalogue().await.expect("the id of the catalogue is public");
    assert_eq!(code(client.find("a").await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.providers(&file(1)).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.list("", None, 10).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.status().await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(open_session(&client, &outsider).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.join(Secret::generate()).await), Some(ErrorCode::Unauthorized));
    let secret = swarm.invite(&tracker, Rights::Full, 1).await;
    let membership = client.join(secret).await.unwrap();
    let now = swarm.clock.now();
    let membership = membership.verify(tracker.admission.authority().key(), now).unwrap();
    assert_eq!((membership.peer, membership.rights), (outsider.peer_id(), Rights::Full));
    assert_eq!(client.list("", None, 10).await.unwrap().0, []);
    open_session(&client, &outsider).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn cached_lookups_are_for_members_only() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (member, revoked_key) =
        (swarm.member(&tracker, Rights::Full).await, swarm.member(&tracker, Rights::Full).await);
    let client = swarm.client(&member, &tracker);
    client.publish(open_session(&client, &member).await.unwrap(), &publication("a", 1)).await.unwrap();
    client.find("a").await.unwrap();
    client.providers(&file(1)).await.unwrap();
    let revoked = swarm.client(&revoked_key, &tracker);
    revoked.status().await.unwrap();
    for operation in [Operation::Get, Operation::Scan] {
        swarm.storage.add(operation, When::Always, Fault::Unavailable);
    }
    for client in [&client, &revoked] {
        client.find("a").await.expect("from memory");
        client.providers(&file(1)).await.expect("from memory");
    }
    swarm.storage.clear();
    tracker.catalogue.revoke(&revoked_key.peer_id(), swarm.clock.now()).await.unwrap();
    tracker.admission.refresh().await.unwrap();
    let outsider = swarm.client(&KeyPair::generate(), &tracker);
    for outside in [&outsider, &revoked] {
        assert_eq!(code(outside.find("a").await), Some(ErrorCode::Unauthorized));
        assert_eq!(code(outside.providers(&file(1)).await), Some(ErrorCode::Unauthorized));
    }
    client.find("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn session_is_bound_to_its_key() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (owner, other) =
        (swarm.member(&tracker, Rights::Full).await, swarm.member(&tracker, Rights::Full).await);
    let (client, thief) = (swarm.client(&owner, &tracker), swarm.client(&other, &tracker));
    let session = open_session(&client, &owner).await.unwrap();
    client.publish(session, &publication("a", 1)).await.unwrap();
    let unauthorized = Some(ErrorCode::Unauthorized);
    assert_eq!(code(thief.publish(session, &publication("b", 2)).await), unauthorized);
    assert_eq!(code(thief.announce(session, &[offer(1)]).await), unauthorized);
    assert_eq!(code(thief.withdraw(session, &[file(1)]).await), unauthorized);
    assert_eq!(code(thief.renew(session, None).await), unauthorized);
    assert_eq!(code(thief.renew(session, Some(MembershipState::default())).await), unauthorized);
    assert_eq!(code(thief.pin(session, file(1)).await), unauthorized);
    assert_eq!(code(thief.unpin(session, file(1)).await), unauthorized);
    assert_eq!(code(thief.leave(session).await), unauthorized);
    assert_eq!(client.providers(&file(1)).await.unwrap().len(), 1);
    assert_eq!(code(client.find("b").await), Some(ErrorCode::NotFound));
    client.renew(session, None).await.expect("its owner can use it");
}

#[tokio::test(start_paused = true)]
async fn refusals_are_cached_without_database_reads() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (outsider, member) = (KeyPair::generate(), swarm.member(&tracker, Rights::Full).await);
    let client = swarm.client(&outsider, &tracker);
    assert_eq!(code(client.status().await), Some(ErrorCode::Unauthorized));
    // A non-member with a forged membership, and a revoked peer.
    let now = swarm.clock.now();
    let forger = Authority::new(KeyPair::generate());
    let revoked_key = swarm.member(&tracker, Rights::Full).await;
    tracker.catalogue.revoke(&revoked_key.peer_id(), now).await.unwrap();
    let mut requests = Vec::new();
    for key in [&outsider, &revoked_key] {
        let connection = swarm.dialer(key).connect(&tracker.at).await.unwrap();
        let authorize = Request::Authorize { membership: forger.admit(key.peer_id(), Rights::Full, now) };
        assert_eq!(refused(&*connection, &authorize).await.code, ErrorCode::Unauthorized);
        requests.push((connection, authorize));
    }
    // From here on a read of the database fails.
    swarm.storage.add(Operation::Get, When::Always, Fault::Unavailable);
    let faults = swarm.storage.faults_met();
    for _ in 0..100 {
        assert_eq!(code(client.find("a").await), Some(ErrorCode::Unauthorized));
        for (connection, authorize) in &requests {
            assert_eq!(refused(&**connection, authorize).await.code, ErrorCode::Unauthorized);
        }
    }
    assert_eq!(swarm.storage.faults_met(), faults);
    assert_eq!(code(swarm.client(&member, &tracker).status().await), Some(ErrorCode::Storage));
    // The cached refusal expires soon, because the peer may have joined at another tracker.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(code(client.status().await), Some(ErrorCode::Storage));
    swarm.storage.clear();
    assert_eq!(code(client.status().await), Some(ErrorCode::Unauthorized));
    let secret = swarm.invite(&tracker, Rights::Full, 1).await;
    swarm.client(&outsider, &tracker).join(secret).await.unwrap();
    client.status().await.expect("after joining no connection is refused");
}

#[tokio::test(start_paused = true)]
async fn member_is_admitted_by_all_trackers_of_a_catalogue() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    assert_eq!(one.admission.authority().key(), other.admission.authority().key());
    let key = swarm.member(&one, Rights::Full).await;
    let client = swarm.client(&key, &other);
    let session = open_session(&client, &key).await.unwrap();
    client.publish(session, &publication("a", 1)).await.unwrap();
    assert_eq!(swarm.client(&key, &one).find("a").await.unwrap().publisher, key.peer_id());
}

#[tokio::test(start_paused = true)]
async fn trackers_of_a_swarm_admit_each_other() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    let status = async |members: &Arc<Members>, key: &KeyPair, at: &Tracker| {
        let transport = self::transport(&swarm, key, members);
        let connection = Dialer::new(vec![transport]).connect(&at.at).await.unwrap();
        call(&*connection, &Request::Status, Deadline::Total(Duration::from_secs(30))).await.map(drop)
    };
    // The replica store of a tracker uses a membership of its own tracker.
    let members = swarm.members(one.admission.authority().key(), &one.key).await;
    members.update(Some(&one.admission.own_membership()), None).await.unwrap();
    for _ in 0..3 {
        status(&members, &one.key, &other).await.expect("although it is not in the database");
    }
    // A non-member is refused with the membership of another peer or of another authority.
    let outsider = KeyPair::generate();
    let forger = Authority::new(KeyPair::generate());
    let forged = forger.admit(outsider.peer_id(), Rights::Full, swarm.clock.now());
    let client = swarm.dialer(&outsider).connect(&other.at).await.unwrap();
    for membership in [forged, one.admission.own_membership()] {
        let error = refused(&*client, &Request::Authorize { membership }).await;
        assert_eq!(error.code, ErrorCode::Unauthorized);
    }
    // A revoked peer is refused with its earlier membership.
    let revoked_key = swarm.member(&one, Rights::Full).await;
    let membership = one.admission.membership(&revoked_key.peer_id()).await.unwrap();
    one.catalogue.revoke(&revoked_key.peer_id(), swarm.clock.now()).await.unwrap();
    let client = swarm.dialer(&revoked_key).connect(&other.at).await.unwrap();
    let error = refused(&*client, &Request::Authorize { membership }).await;
    assert!(error.message.contains("revoked"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn read_only_member_announces_but_does_not_publish() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let (writer, reader) =
        (swarm.member(&tracker, Rights::Full).await, swarm.member(&tracker, Rights::ReadOnly).await);
    let client = swarm.client(&writer, &tracker);
    client.publish(open_session(&client, &writer).await.unwrap(), &publication("a", 1)).await.unwrap();
    let client = swarm.client(&reader, &tracker);
    let session = open_session(&client, &reader).await.unwrap();
    assert_eq!(code(client.publish(session, &publication("b", 2)).await), Some(ErrorCode::Forbidden));
    assert_eq!(code(client.pin(session, file(1)).await), Some(ErrorCode::Forbidden));
    assert_eq!(client.announce(session, &[offer(1)]).await.unwrap(), []);
    assert_eq!(client.providers(&file(1)).await.unwrap().len(), 2);
}

async fn join_from(
    gate: &dyn Handler,
    address: [u8; 4],
    identity: Option<PeerId>,
    secret: Secret,
) -> Result<(Reply, Bytes), ErrorReply> {
    let (connection, handle) = (ConnectionId::next(), ConnectionHandle::default());
    let peer = PeerInfo { connection, handle, address: Some(address.into()), identity };
    gate.handle(RequestId(1), Request::Join { secret }, &peer, &mut NullSink).await
}

#[tokio::test(start_paused = true)]
async fn failed_joins_are_limited_by_address() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let valid = swarm.invite(&tracker, Rights::Full, 2).await;
    let (near, far) = ([127, 0, 0, 1], [10, 0, 0, 2]);
    let [outsider, member, other] = [(); 3].map(|()| Some(KeyPair::generate().peer_id()));
    let join = async |address, peer, secret| join_from(&*tracker.gate, address, peer, secret).await;
    let guess =
        async |address, peer| join(address, peer, Secret::generate()).await.map_err(|error| error.code);
    assert_eq!(join(far, None, valid).await.unwrap_err().code, ErrorCode::Unauthorized);
    for _ in 0..10 {
        assert_eq!(guess(near, outsider).await, Err(ErrorCode::Unauthorized));
    }
    assert_eq!(guess(near, outsider).await, Err(ErrorCode::Busy));
    assert_eq!(guess([127, 0, 0, 2], outsider).await, Err(ErrorCode::Busy), "loopback is one address");
    assert_eq!(guess(far, outsider).await, Err(ErrorCode::Unauthorized), "other addresses are not limited");
    join(near, member, valid).await.expect("a valid invitation is not limited");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(guess(near, outsider).await, Err(ErrorCode::Unauthorized), "the limit refills");
    assert_eq!(guess(near, outsider).await, Err(ErrorCode::Busy));
    // Guessing by a member is limited too; repeating its own invitation is not.
    join(far, other, valid).await.unwrap();
    for _ in 0..20 {
        join(far, other, valid).await.unwrap();
    }
    for _ in 0..10 {
        guess(far, other).await.unwrap();
    }
    assert_eq!(guess(far, other).await, Err(ErrorCode::Busy));
}

#[tokio::test(start_paused = true)]
async fn joins_and_searches_do_not_wait_for_each_other() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let secret = swarm.invite(&tracker, Rights::Full, 100).await;
    let search = async |network: u8| {
        let busy = sleep(Duration::from_secs(1)).map(Ok);
        tracker.catalogue.in_turn(Some([10, 0, 0, network].into()), busy).await
    };
    let searches = join_all((0..8).map(|n| search(n % 4)));
    let join = async {
        let start = Instant::now();
        let peer = Some(KeyPair::generate().peer_id());
        join_from(&*tracker.gate, [10, 0, 0, 9], peer, secret).await.unwrap();
        start.elapsed()
    };
    let (_, took) = tokio::join!(searches, join);
    assert!(took < Duration::from_secs(1), "{took:?}");
}
