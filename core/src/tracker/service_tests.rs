//! The service asked over a memory network by clients that do one thing at a time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::advance;

use super::client::TrackerClient;
use super::error::TrackerError;
use super::pin::PinStore;
use super::service::TrackerService;
use super::settings::TrackerSettings;
use super::testing::{Tracker, World, endpoint, file, offer, publication};
use crate::catalogue::Catalogue;
use crate::catalogue::pins::Pin;
use crate::model::id::FileId;
use crate::model::identity::KeyPair;
use crate::model::record::FileRecord;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{HelloProof, MAX_QUERY, Nonce, Reply, Request, SessionId};
use crate::protocol::server::{Handler, serve};
use crate::storage::memory::Memory;
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::{ConnectionHandle, ConnectionId, Message, PeerInfo, ReplySink};

const AT: &str = "memory://tracker:1";

async fn world() -> (World, Arc<Memory>, Tracker, TrackerClient) {
    let (world, storage) = (World::new(), Arc::new(Memory::new()));
    let tracker = world.tracker(AT, &storage).await;
    let client = TrackerClient::new(world.dialer(), endpoint(AT));
    (world, storage, tracker, client)
}

async fn hello(client: &TrackerClient, key: &KeyPair) -> SessionId {
    let at = endpoint(&format!("memory://{}:1", key.peer_id().short()));
    client.hello(key, &[at]).await.unwrap().1.session
}

async fn providers(client: &TrackerClient, n: u32) -> usize {
    client.providers(&file(n)).await.unwrap().len()
}

fn code<T: std::fmt::Debug>(result: Result<T, TrackerError>) -> Option<ErrorCode> {
    result.unwrap_err().code()
}

#[tokio::test(start_paused = true)]
async fn a_published_file_is_listed_found_and_has_its_publisher_as_provider() {
    let (_, _, _tracker, client) = world().await;
    let key = KeyPair::generate();
    let session = hello(&client, &key).await;
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
async fn a_peer_that_is_silent_is_out_of_the_answers_after_one_lease_and_back_when_it_renews() {
    let (_, _, _tracker, client) = world().await;
    let session = hello(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    advance(Duration::from_millis(29_900)).await;
    assert_eq!(providers(&client, 1).await, 1);
    advance(Duration::from_millis(200)).await;
    assert_eq!(providers(&client, 1).await, 0);
    assert_eq!(client.find("a").await.unwrap().providers, 0);
    client.renew(session).await.unwrap();
    assert_eq!(providers(&client, 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_out_at_once_and_a_late_leave_of_an_older_session_changes_nothing() {
    let (_, _, _tracker, client) = world().await;
    let key = KeyPair::generate();
    let old = hello(&client, &key).await;
    client.publish(old, &publication("a", 1)).await.unwrap();
    let new = hello(&client, &key).await;
    assert_eq!(code(client.leave(old).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.publish(old, &publication("b", 2)).await), Some(ErrorCode::Unauthorized));
    assert_eq!(code(client.renew(old).await), Some(ErrorCode::Unauthorized));
    assert_eq!(providers(&client, 1).await, 1);
    client.leave(new).await.unwrap();
    assert_eq!(providers(&client, 1).await, 0);
    assert_eq!(code(client.renew(new).await), Some(ErrorCode::Unauthorized));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_lost_when_a_tracker_is_killed_and_comes_back_late() {
    let (world, storage, tracker, client) = world().await;
    let (stays, dies) =
        (hello(&client, &KeyPair::generate()).await, hello(&client, &KeyPair::generate()).await);
    client.publish(stays, &publication("a", 1)).await.unwrap();
    client.publish(dies, &publication("b", 2)).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        client.renew(stays).await.unwrap();
    }
    // The last renewals were written, at most 5 s ago.
    tokio::time::sleep(Duration::from_secs(6)).await;
    tracker.kill().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let _tracker = world.tracker(AT, &storage).await;
    assert_eq!(providers(&client, 1).await, 1, "it was alive when the tracker stopped");
    assert_eq!(providers(&client, 2).await, 0, "it was dead already");
    tokio::time::sleep(Duration::from_secs(20)).await;
    client.renew(stays).await.expect("the session goes on");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(providers(&client, 1).await, 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(providers(&client, 1).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_tracker_that_stops_writes_the_last_renewals() {
    let (world, storage, tracker, client) = world().await;
    let other = world.tracker("memory://other:1", &storage).await;
    let session = hello(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(26_000)).await;
    client.renew(session).await.unwrap();
    tracker.stop().await;
    // Without the last renewal the lease would be over by now.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let client = TrackerClient::new(world.dialer(), endpoint("memory://other:1"));
    assert_eq!(providers(&client, 1).await, 1);
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn trackers_on_one_database_see_each_other_s_peers_and_renewals() {
    let (world, storage, _first, client) = world().await;
    let _second = world.tracker("memory://second:1", &storage).await;
    let second = TrackerClient::new(world.dialer(), endpoint("memory://second:1"));
    assert_eq!(client.catalogue().await.unwrap(), second.catalogue().await.unwrap());
    let session = hello(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    assert_eq!(providers(&second, 1).await, 1);
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        client.renew(session).await.unwrap();
        assert_eq!(providers(&second, 1).await, 1);
    }
    second.renew(session).await.expect("a session is one with the catalogue");
    second.leave(session).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(providers(&client, 1).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_void_is_void_with_every_tracker_of_the_database() {
    let (world, storage, _first, client) = world().await;
    let _second = world.tracker("memory://second:1", &storage).await;
    let second = TrackerClient::new(world.dialer(), endpoint("memory://second:1"));
    let key = KeyPair::generate();
    let old = hello(&client, &key).await;
    client.publish(old, &publication("a", 1)).await.unwrap();
    second.renew(old).await.expect("it is valid, and the second tracker knows it now");
    hello(&client, &key).await;
    assert_eq!(code(second.leave(old).await), Some(ErrorCode::Unauthorized));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(code(second.renew(old).await), Some(ErrorCode::Unauthorized));
    assert_eq!((providers(&client, 1).await, providers(&second, 1).await), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_published_is_there_after_the_tracker_was_killed() {
    let (world, storage, tracker, client) = world().await;
    let session = hello(&client, &KeyPair::generate()).await;
    client.publish(session, &publication("a", 1)).await.unwrap();
    tracker.kill().await;
    let _tracker = world.tracker(AT, &storage).await;
    assert_eq!(client.find("a").await.unwrap().providers, 1);
    client.announce(session, &[offer(1)]).await.expect("the session goes on");
}

#[derive(Debug)]
struct Sink;

#[async_trait]
impl ReplySink for Sink {
    async fn reserve(&mut self, _bytes: usize) -> Result<(), TransportError> {
        Ok(())
    }
    async fn send(self: Box<Self>, _message: Message) -> Result<(), TransportError> {
        Ok(())
    }
}

fn connection(number: u64) -> PeerInfo {
    let (connection, handle) = (ConnectionId(number), ConnectionHandle::default());
    PeerInfo { connection, handle, address: None, identity: None }
}

async fn ask(service: &TrackerService, request: Request, address: &str) -> Result<Reply, ErrorReply> {
    let address: IpAddr = address.parse().unwrap();
    let peer = PeerInfo { address: Some(address), ..connection(1) };
    let (reply, payload) = service.handle(RequestId(1), request, &peer, &mut Sink).await?;
    assert_eq!(payload, Bytes::new());
    Ok(reply)
}

async fn proof(service: &TrackerService, key: &KeyPair, endpoints: &[&str]) -> HelloProof {
    let Reply::Hello { catalogue, nonce, .. } =
        ask(service, Request::Hello { proof: None }, "127.0.0.1").await.unwrap()
    else {
        panic!("hello is answered by hello")
    };
    let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
    let signature = key.sign(&HelloProof::signed_bytes(catalogue, nonce, &endpoints));
    HelloProof { key: key.public(), nonce, signature, endpoints }
}

#[tokio::test(start_paused = true)]
async fn a_loopback_address_is_given_to_askers_on_loopback_only() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let key = KeyPair::generate();
    let proof = proof(service, &key, &["zmq://0.0.0.0:7710", "zmq://10.0.0.5:7710"]).await;
    let reply = ask(service, Request::Hello { proof: Some(proof) }, "127.0.0.1").await.unwrap();
    let Reply::Hello { welcome: Some(welcome), .. } = reply else { panic!("{reply:?}") };
    assert_eq!(welcome.endpoints[0], endpoint("zmq://127.0.0.1:7710"));
    let session = welcome.session;
    let publish = Request::Publish {
        session,
        name: "a".parse().unwrap(),
        id: file(1),
        size: 1,
        kind: crate::model::record::FileKind::File,
    };
    ask(service, publish, "127.0.0.1").await.unwrap();
    for (asker, count) in [("127.0.0.1", 2), ("::1", 2), ("::ffff:127.0.0.1", 2), ("10.0.0.9", 1)] {
        let reply = ask(service, Request::Providers { id: file(1) }, asker).await.unwrap();
        let Reply::Providers { providers } = reply else { panic!("{reply:?}") };
        assert_eq!(providers[0].endpoints.len(), count, "{asker}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_needs_its_own_nonce_and_key_and_is_worth_nothing_elsewhere() {
    let (_, _, tracker, _client) = world().await;
    let service = &tracker.service;
    let (key, other) = (KeyPair::generate(), KeyPair::generate());
    let good = proof(service, &key, &["zmq://10.0.0.5:7710"]).await;
    let refused = |proof: HelloProof| async move {
        let result = ask(service, Request::Hello { proof: Some(proof) }, "10.0.0.5").await;
        result.unwrap_err().code
    };
    let wrong = HelloProof { key: other.public(), ..good.clone() };
    assert_eq!(refused(wrong).await, ErrorCode::Unauthorized);
    let wrong = HelloProof { endpoints: vec![endpoint("zmq://10.6.6.6:1")], ..good.clone() };
    assert_eq!(refused(wrong).await, ErrorCode::Unauthorized);
    let wrong = HelloProof { nonce: Nonce([7; 32]), ..good.clone() };
    assert_eq!(refused(wrong).await, ErrorCode::Unauthorized);
    let wrong = HelloProof { endpoints: vec![endpoint("zmq://10.0.0.5:7710"); 9], ..good.clone() };
    assert_eq!(refused(wrong).await, ErrorCode::Malformed);
    let elsewhere = connection(2);
    let request = || Request::Hello { proof: Some(good.clone()) };
    let result = service.handle(RequestId(1), request(), &elsewhere, &mut Sink).await;
    assert_eq!(result.unwrap_err().code, ErrorCode::Unauthorized);
    let authenticated = PeerInfo { identity: Some(other.peer_id()), ..connection(1) };
    let result = service.handle(RequestId(1), request(), &authenticated, &mut Sink).await;
    assert_eq!(result.unwrap_err().code, ErrorCode::Unauthorized);
    assert!(ask(service, request(), "10.0.0.5").await.is_ok());
    advance(Duration::from_secs(61)).await;
    assert_eq!(refused(good.clone()).await, ErrorCode::Unauthorized);
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_limits_and_requests_for_peers_are_refused() {
    let (_, _, tracker, client) = world().await;
    let session = hello(&client, &KeyPair::generate()).await;
    let service = &tracker.service;
    let long = "x".repeat(MAX_QUERY + 1);
    for (request, expected) in [
        (Request::Announce { session, offers: vec![offer(1); 801] }, ErrorCode::TooLarge),
        (Request::Withdraw { session, ids: vec![file(1); 801] }, ErrorCode::TooLarge),
        (Request::Find { query: long.clone() }, ErrorCode::Malformed),
        (Request::List { pattern: long, cursor: None, limit: 1 }, ErrorCode::Malformed),
        (Request::Have { id: file(1), wait: None }, ErrorCode::Unsupported),
        (Request::Renew { session: SessionId([0; 16]), known: None }, ErrorCode::Unauthorized),
    ] {
        assert_eq!(ask(service, request, "10.0.0.1").await.unwrap_err().code, expected);
    }
    let error = ask(service, Request::Pin { session, id: file(1) }, "10.0.0.1").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(error.message.contains("[tracker.store] enabled = true"), "{}", error.message);
}

/// Keeps nothing and says yes.
#[derive(Debug)]
struct NoStore;

#[async_trait]
impl PinStore for NoStore {
    fn quota(&self) -> u64 {
        1 << 40
    }
    async fn keep(&self, _file: &FileRecord, _pin: Pin) -> Result<u64, ErrorReply> {
        Ok(0)
    }
    async fn discard(&self, _id: &FileId) -> Result<(), ErrorReply> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_pinned_a_file_unpins_it() {
    let world = World::new();
    let settings = TrackerSettings::default();
    let storage = Arc::new(Memory::new());
    let catalogue = Catalogue::open(storage, settings.rules(), world.clock.now_ms()).await.unwrap();
    let store: Arc<dyn PinStore> = Arc::new(NoStore);
    let service = TrackerService::new(Arc::new(catalogue), settings, Arc::clone(&world.clock), Some(store));
    let listener = world.dialer().bind(&endpoint(AT)).await.unwrap();
    let serving = tokio::spawn(serve(Arc::clone(&listener), Arc::new(service)));
    let client = TrackerClient::new(world.dialer(), endpoint(AT));
    let owner = hello(&client, &KeyPair::generate()).await;
    let other = hello(&client, &KeyPair::generate()).await;
    client.publish(owner, &publication("a", 1)).await.unwrap();
    assert_eq!(client.pin(owner, file(1)).await.unwrap(), (0, false));
    assert_eq!(client.pin(other, file(1)).await.unwrap(), (0, false));
    assert_eq!(code(client.unpin(other, file(1)).await), Some(ErrorCode::NotFound));
    assert_eq!(client.status().await.unwrap().store.unwrap().pins, 1);
    client.unpin(owner, file(1)).await.unwrap();
    assert_eq!(client.status().await.unwrap().store.unwrap().pins, 0);
    listener.shutdown(Duration::ZERO).await;
    serving.await.unwrap();
}
