//! Tests of revocations.

use std::time::Duration;

use tokio::time::sleep;

use super::{Swarm, code, open_session};
use crate::catalogue::layout::{self, MEMBERS, META, REVOKED};
use crate::membership::credentials::revocations::{PAGE, RevocationPage};
use crate::tracker::settings::TrackerSettings;
use enjambre_core::model::membership::{LIFE, Rights};
use enjambre_core::protocol::client::call;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{MembershipState, Request};
use enjambre_core::{Batch, Deadline, Durability, PeerId, Storage};
use enjambre_testkit::storage::fault::{Fault, Operation, When};

#[tokio::test(start_paused = true)]
async fn renewal_returns_only_changed_membership_state() {
    let swarm = Swarm::new();
    let (tracker, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    let authority = *tracker.admission.authority().key();
    let key = swarm.member(&tracker, Rights::Full).await;
    let revoked = swarm.member(&tracker, Rights::Full).await;
    let client = swarm.client(&key, &tracker);
    let session = open_session(&client, &key).await.unwrap();
    let mut known = MembershipState::default();
    let renewal = client.renew(session, Some(known)).await.unwrap().membership;
    known.expires_ms = renewal.membership.unwrap().verify(&authority, swarm.clock.now()).unwrap().until;
    assert_eq!(client.renew(session, Some(known)).await.unwrap().membership, Default::default());
    other.catalogue.revoke(&revoked.peer_id(), swarm.clock.now()).await.unwrap();
    // This tracker polls the revocation by the other one.
    sleep(Duration::from_secs(6)).await;
    let renewal = client.renew(session, Some(known)).await.unwrap().membership;
    let page = RevocationPage::verify(&renewal.revocations.unwrap(), &authority).unwrap();
    assert!(page.revocations()[0].peer == revoked.peer_id() && renewal.membership.is_none() && !renewal.more);
    known.revocations = page.version();
    assert_eq!(client.renew(session, Some(known)).await.unwrap().membership, Default::default());
    // The membership is renewed long before it expires.
    known.expires_ms = swarm.clock.now() + LIFE / 2 - Duration::from_millis(1);
    assert!(client.renew(session, Some(known)).await.unwrap().membership.membership.is_some());
}

#[tokio::test(start_paused = true)]
async fn revoked_peer_is_refused_by_all_trackers_soon() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.tracker("one").await, swarm.tracker("other").await);
    let key = swarm.member(&one, Rights::Full).await;
    let clients = [swarm.client(&key, &one), swarm.client(&key, &other)];
    for client in &clients {
        client.status().await.unwrap();
    }
    // An idle connection to the other tracker.
    let idle = swarm.dialer(&key).connect(&other.at).await.unwrap();
    call(&*idle, &Request::Status, Deadline::Total(Duration::from_secs(1))).await.unwrap();
    let handle = other.connections.lock().last().unwrap().clone();
    let session = open_session(&clients[1], &key).await.unwrap();
    one.catalogue.revoke(&key.peer_id(), swarm.clock.now()).await.unwrap();
    one.admission.refresh().await.unwrap();
    assert_eq!(code(clients[0].status().await), Some(ErrorCode::Unauthorized), "at once");
    assert!(!handle.is_closed());
    sleep(Duration::from_secs(6)).await;
    assert!(handle.is_closed(), "idle connections are closed too");
    assert_eq!(code(clients[1].status().await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(clients[1].renew(session, None).await), Some(ErrorCode::Unauthorized));
    assert_eq!(
        code(open_session(&swarm.client(&key, &one), &key).await),
        Some(ErrorCode::Unauthorized),
        "on a new connection"
    );
}

#[tokio::test(start_paused = true)]
async fn restored_database_does_not_admit_revoked_peers() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let key = swarm.member(&tracker, Rights::Full).await;
    let member = swarm.storage.get(MEMBERS, &[layout::peer_id_key(&key.peer_id())]).await.unwrap().remove(0);
    tracker.catalogue.revoke(&key.peer_id(), swarm.clock.now()).await.unwrap();
    tracker.admission.refresh().await.unwrap();
    let mut batch = Batch::new();
    batch.put(MEMBERS, layout::peer_id_key(&key.peer_id()), member.unwrap());
    batch.delete(REVOKED, layout::peer_id_key(&key.peer_id()));
    batch.delete(META, layout::meta_key("revocations"));
    swarm.storage.commit(batch, Durability::Durable).await.unwrap();
    // The outdated list is not read.
    swarm.storage.add(Operation::Scan, When::Always, Fault::Unavailable);
    tracker.admission.refresh().await.unwrap();
    swarm.storage.clear();
    assert_eq!(code(swarm.client(&key, &tracker).status().await), Some(ErrorCode::Unauthorized));
    // The peer stays revoked after a newer revocation.
    let another = swarm.member(&tracker, Rights::Full).await;
    tracker.catalogue.revoke(&another.peer_id(), swarm.clock.now() + Duration::from_millis(1)).await.unwrap();
    tracker.admission.refresh().await.unwrap();
    for key in [&key, &another] {
        assert_eq!(code(swarm.client(key, &tracker).status().await), Some(ErrorCode::Unauthorized));
    }
}

#[tokio::test(start_paused = true)]
async fn presence_renews_membership_and_revocations() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let key = swarm.member(&tracker, Rights::Full).await;
    let revoked = swarm.member(&tracker, Rights::Full).await.peer_id();
    let members = swarm.members(tracker.admission.authority().key(), &key).await;
    let presence = swarm.presence(&tracker, &key, &members).await;
    assert!(members.wait_own(Duration::from_secs(1)).await.is_some());
    tracker.catalogue.revoke(&revoked, swarm.clock.now()).await.unwrap();
    assert!(!members.is_revoked(&revoked));
    sleep(TrackerSettings::default().lease).await;
    assert!(members.is_revoked(&revoked));
    for _ in 0..5 {
        sleep(LIFE / 3).await;
        assert!(members.own().is_some(), "it is renewed before it expires");
    }
    tracker.catalogue.revoke(&key.peer_id(), swarm.clock.now()).await.unwrap();
    sleep(TrackerSettings::default().lease).await;
    let status = presence.status();
    assert!(status[0].last_error.as_ref().is_some_and(|error| error.contains("revoked")), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn many_revocations_arrive_within_a_lease() {
    let swarm = Swarm::new();
    let tracker = swarm.tracker("tracker").await;
    let key = swarm.member(&tracker, Rights::Full).await;
    let members = swarm.members(tracker.admission.authority().key(), &key).await;
    let _presence = swarm.presence(&tracker, &key, &members).await;
    // More pages than there are renewals in a lease.
    let now = swarm.clock.now();
    let mut revoked: Vec<PeerId> = (0..4 * PAGE).map(|_| PeerId::from_bytes(rand::random())).collect();
    for (page, peers) in revoked.chunks(PAGE).enumerate() {
        let mut batch = Batch::new();
        for (n, peer) in peers.iter().enumerate() {
            let version = now.get() - (4 - page) as u64 * PAGE as u64 + n as u64;
            batch.put(REVOKED, layout::peer_id_key(peer), layout::number(version));
        }
        swarm.storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    let last = swarm.member(&tracker, Rights::Full).await.peer_id();
    tracker.catalogue.revoke(&last, now).await.unwrap();
    revoked.push(last);
    sleep(TrackerSettings::default().lease).await;
    let missing = revoked.iter().filter(|peer| !members.is_revoked(peer)).count();
    assert_eq!(missing, 0, "of {}", revoked.len());
}
