//! Tests of the tracker service over an in-process network, with one request at a time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::advance;

use super::{NullSink, TRACKER, Tracker, World, endpoint, file, offer, publication};
use crate::catalogue::Catalogue;
use crate::catalogue::layout::PinId;
use crate::tracker::pin_store::PinStore;
use crate::tracker::service::TrackerService;
use crate::tracker::settings::TrackerSettings;
use crate::tracker_client::client::TrackerClient;
use crate::tracker_client::error::TrackerError;
use enjambre_core::protocol::codec::{decode_reply, encode_request};
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{MAX_QUERY, Nonce, Reply, Request, SessionGrant, SessionProof};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::{
    ConnectionHandle, ConnectionId, EncodedRequest, KeyPair, Memory, PeerId, PeerInfo, Publication,
    RequestId, SessionId, UnixMillis,
};

const AT: &str = "memory://tracker:1";

async fn world() -> (World, Arc<Memory>, Tracker, TrackerClient) {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let tracker = world.tracker(AT, &storage).await;
    let client = TrackerClient::new(world.dialer(), endpoint(AT));
    (world, storage, tracker, client)
}

async fn open_session(client: &TrackerClient, key: &KeyPair) -> SessionId {
    let at = endpoint(&format!("memory://peer-{}:1", key.peer_id().short()));
    client.open_session(None, key, &[at]).await.unwrap().1.session
}

async fn providers(client: &TrackerClient, n: u32) -> usize {
    client.providers(&file(n)).await.unwrap().len()
}

fn code<T: std::fmt::Debug>(result: Result<T, TrackerError>) -> Option<ErrorCode> {
    result.unwrap_err().code()
}

#[tokio::test(start_paused = true)]
async fn published_file_is_found_with_its_publisher() {
    let (_, _, _tracker, client) = world().await;
    let key = KeyPair::generate();
    let session = open_session(&client, &key).await;
    assert_eq!(client.publish(session, &publication("a", 1)).await.unwrap(), (1, true));
    let record = client.find("a").await.unwrap();
    assert_eq!((record.id, record.publisher, record.providers), (file(1), key.peer_id(), 1));
    assert_eq!(client.list("", None, 10).await.unwrap(), (vec![record], None));
    assert_eq!(client.providers(&file(1)).await.unwrap()[0].peer, key.peer_id());
    assert_eq!(code(client.find("b").await), Some(ErrorCode::NotFound));
    assert_eq!(code(client.providers(&file(2)).await), Some(ErrorCode::NotFound));
    let status = client.status().await.unwrap();
    assert_eq!((status.peers, status.files, status.store), (1, 1, None));
}

#[tokio::test(start_paused = true)]
async fn silent_peer_is_no_provider_until_it_renews() {
    let (_, _, _tracker, client) = world().await;
    let session = open_session(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    advance(Duration::from_millis(29_900)).await;
    assert_eq!(providers(&client, 1).await, 1);
    advance(Duration::from_millis(200)).await;
    assert_eq!(providers(&client, 1).await, 0);
    assert_eq!(client.find("a").await.unwrap().providers, 0);
    client.renew(session, None).await.unwrap();
    assert_eq!(providers(&client, 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn leave_is_immediate_and_void_for_older_sessions() {
    let (_, _, _tracker, client) = world().await;
    let key = KeyPair::generate();
    let old = open_session(&client, &key).await;
    client.publish(old, &publication("a", 1)).await.unwrap();
    let new = open_session(&client, &key).await;
    assert_eq!(code(client.leave(old).await), Some(ErrorCode::Replaced));
    assert_eq!(code(client.publish(old, &publication("b", 2)).await), Some(ErrorCode::Replaced));
    assert_eq!(code(client.renew(old, None).await), Some(ErrorCode::Replaced));
    assert_eq!(providers(&client, 1).await, 1);
    client.leave(new).await.unwrap();
    assert_eq!(providers(&client, 1).await, 0);
    assert_eq!(code(client.renew(new, None).await), Some(ErrorCode::Unauthorized));
}

#[tokio::test(start_paused = true)]
async fn peers_stay_alive_over_a_long_tracker_outage() {
    let (world, storage, tracker, client) = world().await;
    let (alive, expired) = (
        open_session(&client, &KeyPair::generate()).await,
        open_session(&client, &KeyPair::generate()).await,
    );
    client.publish(alive, &publication("a", 1)).await.unwrap();
    client.publish(expired, &publication("b", 2)).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        client.renew(alive, None).await.unwrap();
    }
    // Renewals are written at most 5 s later.
    tokio::time::sleep(Duration::from_secs(6)).await;
    tracker.kill().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let _tracker = world.tracker(AT, &storage).await;
    assert_eq!(providers(&client, 1).await, 1, "it was alive when the tracker was killed");
    assert_eq!(providers(&client, 2).await, 0, "its lease had expired");
    tokio::time::sleep(Duration::from_secs(20)).await;
    client.renew(alive, None).await.expect("the session is still open");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(providers(&client, 1).await, 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(providers(&client, 1).await, 0);
}

#[tokio::test(start_paused = true)]
async fn stopping_tracker_writes_the_last_renewals() {
    let (world, storage, tracker, client) = world().await;
    let other = world.tracker("memory://other:1", &storage).await;
    let session = open_session(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(26_000)).await;
    client.renew(session, None).await.unwrap();
    tracker.stop().await;
    // Without the last renewal the lease would have expired.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let client = TrackerClient::new(world.dialer(), endpoint("memory://other:1"));
    assert_eq!(providers(&client, 1).await, 1);
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn trackers_of_one_database_share_peers_and_renewals() {
    let (world, storage, _first, client) = world().await;
    let _second = world.tracker("memory://second:1", &storage).await;
    let second = TrackerClient::new(world.dialer(), endpoint("memory://second:1"));
    assert_eq!(client.catalogue().await.unwrap(), second.catalogue().await.unwrap());
    let session = open_session(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    assert_eq!(providers(&second, 1).await, 1);
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        client.renew(session, None).await.unwrap();
        assert_eq!(providers(&second, 1).await, 1);
    }
    second.renew(session, None).await.expect("a session is valid at all trackers of the catalogue");
    second.leave(session).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(providers(&client, 1).await, 0);
}

#[tokio::test(start_paused = true)]
async fn replaced_session_is_void_at_all_trackers() {
    let (world, storage, _first, client) = world().await;
    let _second = world.tracker("memory://second:1", &storage).await;
    let second = TrackerClient::new(world.dialer(), endpoint("memory://second:1"));
    let key = KeyPair::generate();
    let old = open_session(&client, &key).await;
    client.publish(old, &publication("a", 1)).await.unwrap();
    second.renew(old, None).await.expect("it is valid");
    open_session(&client, &key).await;
    assert_eq!(code(second.leave(old).await), Some(ErrorCode::Unauthorized));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(code(second.renew(old, None).await), Some(ErrorCode::Replaced));
    assert_eq!((providers(&client, 1).await, providers(&second, 1).await), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn publication_survives_a_killed_tracker() {
    let (world, storage, tracker, client) = world().await;
    let session = open_session(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    tracker.kill().await;
    let _tracker = world.tracker(AT, &storage).await;
    assert_eq!(client.find("a").await.unwrap().providers, 1);
    client.announce(session, &[offer(1)]).await.expect("the session is still open");
}

fn connection(number: u64) -> PeerInfo {
    let (connection, handle) = (ConnectionId(number), ConnectionHandle::default());
    PeerInfo { connection, handle, address: None, identity: None }
}

async fn send(service: &TrackerService, request: Request, address: &str) -> Result<Reply, ErrorReply> {
    let address: IpAddr = address.parse().unwrap();
    let peer = PeerInfo { address: Some(address), ..connection(1) };
    let (reply, payload) = service.handle(RequestId(1), request, &peer, &mut NullSink).await?;
    assert_eq!(payload, Bytes::new());
    Ok(reply)
}

async fn proof(service: &TrackerService, key: &KeyPair, endpoints: &[&str]) -> SessionProof {
    proof_for(None, service, key, endpoints).await
}

/// Opens a session of a new peer.
async fn open_at(service: &TrackerService, address: &str) -> Result<SessionGrant, ErrorReply> {
    let proof = proof(service, &KeyPair::generate(), &["zmq://0.0.0.0:7710"]).await;
    match send(service, Request::OpenSession { proof: Some(proof) }, address).await? {
        Reply::OpenSession { grant: Some(grant), .. } => Ok(grant),
        other => panic!("{other:?}"),
    }
}

/// A proof for this tracker, with a nonce of the service.
async fn proof_for(
    tracker: Option<PeerId>,
    service: &TrackerService,
    key: &KeyPair,
    endpoints: &[&str],
) -> SessionProof {
    let Reply::OpenSession { catalogue, nonce, .. } =
        send(service, Request::OpenSession { proof: None }, "127.0.0.1").await.unwrap()
    else {
        panic!("wrong reply")
    };
    let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
    let signature = key.sign(&SessionProof::signed_bytes(tracker, catalogue, nonce, &endpoints));
    SessionProof { key: key.public(), nonce, signature, endpoints }
}

#[tokio::test(start_paused = true)]
async fn loopback_endpoints_go_to_local_requesters_only() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let key = KeyPair::generate();
    let proof = proof(service, &key, &["zmq://0.0.0.0:7710", "zmq://10.0.0.5:7710"]).await;
    let reply = send(service, Request::OpenSession { proof: Some(proof) }, "127.0.0.1").await.unwrap();
    let Reply::OpenSession { grant: Some(grant), .. } = reply else { panic!("{reply:?}") };
    assert_eq!(grant.endpoints[0], endpoint("zmq://127.0.0.1:7710"));
    let session = grant.session;
    let publish = Request::Publish {
        session,
        name: "a".parse().unwrap(),
        id: file(1),
        size: 1,
        kind: enjambre_core::model::record::FileKind::File,
        again: None,
    };
    send(service, publish, "127.0.0.1").await.unwrap();
    for (requester, count) in [("127.0.0.1", 2), ("::1", 2), ("::ffff:127.0.0.1", 2), ("10.0.0.9", 1)] {
        let reply = send(service, Request::Providers { id: file(1) }, requester).await.unwrap();
        let Reply::Providers { providers } = reply else { panic!("{reply:?}") };
        assert_eq!(providers[0].endpoints.len(), count, "{requester}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_endpoint_in_any_proof_is_malformed() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let valid = proof(service, &KeyPair::generate(), &["zmq://10.0.0.5:0"]).await;
    for proof in [SessionProof { nonce: Nonce([7; 32]), ..valid.clone() }, valid] {
        let result = send(service, Request::OpenSession { proof: Some(proof) }, "10.0.0.5").await;
        assert_eq!(result.unwrap_err().code, ErrorCode::Malformed);
    }
}

#[tokio::test(start_paused = true)]
async fn session_proof_is_bound_to_nonce_key_and_connection() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let (key, other) = (KeyPair::generate(), KeyPair::generate());
    let valid = || proof(service, &key, &["zmq://10.0.0.5:7710"]);
    let refused = |proof: SessionProof| async move {
        let result = send(service, Request::OpenSession { proof: Some(proof) }, "10.0.0.5").await;
        result.unwrap_err().code
    };
    let wrong = SessionProof { key: other.public(), ..valid().await };
    assert_eq!(refused(wrong).await, ErrorCode::Unauthorized);
    let wrong = SessionProof { endpoints: vec![endpoint("zmq://10.6.6.6:1")], ..valid().await };
    assert_eq!(refused(wrong).await, ErrorCode::Unauthorized);
    let wrong = SessionProof { nonce: Nonce([7; 32]), ..valid().await };
    assert_eq!(refused(wrong).await, ErrorCode::Unauthorized);
    let wrong = SessionProof { endpoints: vec![endpoint("zmq://10.0.0.5:7710"); 9], ..valid().await };
    assert_eq!(refused(wrong).await, ErrorCode::Malformed);
    let other_connection = connection(2);
    let request = |proof| Request::OpenSession { proof: Some(proof) };
    let result = service.handle(RequestId(1), request(valid().await), &other_connection, &mut NullSink).await;
    assert_eq!(result.unwrap_err().code, ErrorCode::Unauthorized);
    let authenticated = PeerInfo { identity: Some(other.peer_id()), ..connection(1) };
    let proof = proof_for(Some(TRACKER), service, &key, &[]).await;
    let result = service.handle(RequestId(1), request(proof), &authenticated, &mut NullSink).await;
    assert_eq!(result.unwrap_err().code, ErrorCode::Unauthorized);
    let late = valid().await;
    assert!(send(service, request(valid().await), "10.0.0.5").await.is_ok());
    advance(Duration::from_secs(61)).await;
    assert_eq!(refused(late).await, ErrorCode::Unauthorized);
}

#[tokio::test(start_paused = true)]
async fn session_proof_is_accepted_once() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let key = KeyPair::generate();
    let (older, newer) = (proof(service, &key, &[]).await, proof(service, &key, &[]).await);
    let open = |proof: &SessionProof| Request::OpenSession { proof: Some(proof.clone()) };
    send(service, open(&newer), "10.0.0.5").await.unwrap();
    for used in [newer, older] {
        let refused = send(service, open(&used), "10.0.0.5").await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::Unauthorized);
    }
    let next = proof(service, &key, &[]).await;
    send(service, open(&next), "10.0.0.5").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn session_proof_for_another_tracker_is_refused() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let key = KeyPair::generate();
    let plain = connection(1);
    let authenticated = PeerInfo { identity: Some(key.peer_id()), ..connection(1) };
    let other = PeerId::from_bytes([1; 32]);
    for (signed_for, peer, accepted) in [
        (None, &plain, true),
        (Some(TRACKER), &authenticated, true),
        (Some(other), &plain, false),
        (Some(TRACKER), &plain, false),
        (Some(other), &authenticated, false),
        (None, &authenticated, false),
    ] {
        let proof = Some(proof_for(signed_for, service, &key, &[]).await);
        let opened = service.handle(RequestId(1), Request::OpenSession { proof }, peer, &mut NullSink).await;
        assert_eq!(opened.is_ok(), accepted, "{signed_for:?} over {:?}", peer.identity);
    }
}

#[tokio::test(start_paused = true)]
async fn authenticated_session_is_refused_over_plaintext() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let (key, other) = (KeyPair::generate(), KeyPair::generate());
    let [owner, thief] =
        [&key, &other].map(|key| PeerInfo { identity: Some(key.peer_id()), ..connection(1) });
    let handle = async |request, peer: &PeerInfo| {
        service.handle(RequestId(1), request, peer, &mut NullSink).await.map(|(reply, _)| reply)
    };
    let proof = Some(proof_for(Some(TRACKER), service, &key, &[]).await);
    let reply = handle(Request::OpenSession { proof }, &owner).await.unwrap();
    let Reply::OpenSession { grant: Some(grant), .. } = reply else { panic!("{reply:?}") };
    let renew = || Request::Renew { session: grant.session, membership: None };
    for peer in [connection(1), thief] {
        assert_eq!(handle(renew(), &peer).await.unwrap_err().code, ErrorCode::Unauthorized);
    }
    handle(renew(), &owner).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn oversized_and_unsupported_requests_are_refused() {
    let (_, _, tracker, client) = world().await;
    let session = open_session(&client, &KeyPair::generate()).await;
    let service = &tracker.service;
    let long = "x".repeat(MAX_QUERY + 1);
    for (request, expected) in [
        (Request::Announce { session, offers: vec![offer(1); 801] }, ErrorCode::TooLarge),
        (Request::Withdraw { session, ids: vec![file(1); 801] }, ErrorCode::TooLarge),
        (Request::Find { query: long.clone() }, ErrorCode::Malformed),
        (Request::List { pattern: long, cursor: None, limit: 1 }, ErrorCode::Malformed),
        (Request::Have { id: file(1), wait: None }, ErrorCode::Unsupported),
        (Request::Renew { session: SessionId([0; 16]), membership: None }, ErrorCode::Unauthorized),
    ] {
        assert_eq!(send(service, request, "10.0.0.1").await.unwrap_err().code, expected);
    }
    let error = send(service, Request::Pin { session, id: file(1) }, "10.0.0.1").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(error.message.contains("[tracker.store] enabled = true"), "{}", error.message);
}

/// A store that accepts pins and stores nothing.
#[derive(Debug)]
struct NullStore(Arc<Catalogue>);

#[async_trait]
impl PinStore for NullStore {
    fn quota(&self) -> u64 {
        1 << 40
    }
    async fn pin(&self, id: &PinId) -> Result<(u64, bool), ErrorReply> {
        self.0.pin(id, UnixMillis(1)).await?;
        Ok((0, false))
    }
    async fn unpin(&self, id: &PinId) -> Result<(), ErrorReply> {
        self.0.unpin(id).await?;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn each_peer_removes_only_its_own_pin() {
    let world = World::new();
    let settings = TrackerSettings::default();
    let storage = Arc::new(Memory::new());
    let catalogue = Arc::new(Catalogue::open(storage, settings.rules(), world.clock.now()).await.unwrap());
    let store: Arc<dyn PinStore> = Arc::new(NullStore(Arc::clone(&catalogue)));
    let service = TrackerService::new(catalogue, TRACKER, settings, Arc::clone(&world.clock), Some(store));
    let listener = world.dialer().bind(&endpoint(AT)).await.unwrap();
    let serving = tokio::spawn(serve(Arc::clone(&listener), Arc::new(service)));
    let client = TrackerClient::new(world.dialer(), endpoint(AT));
    let owner = open_session(&client, &KeyPair::generate()).await;
    let other = open_session(&client, &KeyPair::generate()).await;
    client.publish(owner, &publication("a", 1)).await.unwrap();
    let pins = async || client.status().await.unwrap().store.unwrap().pins;
    assert_eq!(client.pin(owner, file(1)).await.unwrap(), (0, false));
    assert_eq!(code(client.unpin(other, file(1)).await), Some(ErrorCode::NotFound));
    assert_eq!(client.pin(other, file(1)).await.unwrap(), (0, false));
    assert_eq!(pins().await, 2);
    client.unpin(owner, file(1)).await.unwrap();
    assert_eq!(code(client.unpin(owner, file(1)).await), Some(ErrorCode::NotFound));
    assert_eq!(client.pins(other, None).await.unwrap().0.len(), 1);
    client.unpin(other, file(1)).await.unwrap();
    assert_eq!(pins().await, 0);
    listener.shutdown(Duration::ZERO).await;
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn renewal_from_another_address_updates_endpoints() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let session = open_at(service, "10.0.0.5").await.unwrap().session;
    let Publication { name, id, size, kind } = publication("a", 1);
    send(service, Request::Publish { session, name, id, size, kind, again: None }, "10.0.0.5").await.unwrap();
    let cached = || {
        let request = encode_request(RequestId(1), &Request::Providers { id });
        service.answer_immediately(&EncodedRequest::parse(request).unwrap(), &connection(1))
    };
    for address in ["10.0.0.5", "10.0.0.6", "10.0.0.6", "2001:db8::6", "10.0.0.5"] {
        let renew = Request::Renew { session, membership: None };
        let reply = send(service, renew, address).await.unwrap();
        let Reply::Renewed { endpoints, .. } = reply else { panic!("{reply:?}") };
        let expected = match address.contains(':') {
            // A listener at 0.0.0.0 is not reachable over IPv6.
            true => Vec::new(),
            false => vec![endpoint(&format!("zmq://{address}:7710"))],
        };
        assert_eq!(endpoints, expected, "{address}");
        for _ in 0..2 {
            let reply = send(service, Request::Providers { id }, "10.0.0.9").await.unwrap();
            let Reply::Providers { providers } = reply else { panic!("{reply:?}") };
            let found: Vec<_> = providers.into_iter().flat_map(|provider| provider.endpoints).collect();
            assert_eq!(found, expected, "{address}");
            let reply = cached().expect("the reply is cached");
            let Some(Ok(Reply::Providers { providers })) = decode_reply(&reply) else { panic!("{reply:?}") };
            let found: Vec<_> = providers.into_iter().flat_map(|provider| provider.endpoints).collect();
            assert_eq!(found, expected, "{address}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn alternating_addresses_change_endpoints_at_a_limited_rate() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let grant = open_at(service, "10.0.0.5").await.unwrap();
    let renewed = async |address| {
        let renew = Request::Renew { session: grant.session, membership: None };
        match send(service, renew, address).await.unwrap() {
            Reply::Renewed { endpoints, .. } => endpoints,
            other => panic!("{other:?}"),
        }
    };
    let (mut changes, mut last) = (0, grant.endpoints.clone());
    for n in 0..1000 {
        let endpoints = renewed(["10.0.0.6", "10.0.0.5"][n % 2]).await;
        changes += usize::from(endpoints != last);
        last = endpoints;
    }
    let burst = TrackerSettings::default().sessions_per_address.get() as usize;
    assert!((2..=2 * burst).contains(&changes), "{changes} changes");
    advance(Duration::from_secs(128)).await;
    for address in ["10.0.0.5", "10.0.0.6"] {
        assert_eq!(renewed(address).await, [endpoint(&format!("zmq://{address}:7710"))]);
    }
}

#[tokio::test(start_paused = true)]
async fn new_sessions_are_limited_by_address() {
    let (_, _, tracker, _client) = world().await;
    let open = async |address| open_at(&tracker.service, address).await.map_err(|error| error.code);
    for number in 0..TrackerSettings::default().sessions_per_address.get() {
        open(["127.0.0.1", "127.0.0.2"][number as usize % 2]).await.unwrap();
    }
    assert_eq!(open("127.0.0.1").await.unwrap_err(), ErrorCode::Busy);
    open("10.0.0.5").await.expect("another address has its own limit");
    advance(Duration::from_secs(1)).await;
    open("127.0.0.3").await.expect("the limit refills");
    assert_eq!(open("127.0.0.1").await.unwrap_err(), ErrorCode::Busy);
}
