//! Tests of the client against a fake tracker.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use enjambre_core::protocol::error::ErrorReply;
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{PeerId, PeerInfo, ReplySink, RequestId};

const CATALOGUE: CatalogueId = CatalogueId([1; 16]);

/// Replies with one catalogue and these endpoints of a provider. Records the number of proofs.
#[derive(Default)]
struct FakeTracker {
    endpoints: Vec<Endpoint>,
    proofs: Mutex<usize>,
}

#[async_trait]
impl Handler for FakeTracker {
    async fn handle(
        &self,
        _id: RequestId,
        request: Request,
        _peer: &PeerInfo,
        _sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let reply = match request {
            Request::OpenSession { proof } => {
                *self.proofs.lock() += usize::from(proof.is_some());
                let session = SessionId([3; 16]);
                let grant = SessionGrant {
                    session,
                    now_ms: UnixMillis(1),
                    gaps: Vec::new(),
                    lease_ms: 1,
                    endpoints: Vec::new(),
                    membership: None,
                };
                Reply::OpenSession {
                    catalogue: CATALOGUE,
                    nonce: Nonce([2; 32]),
                    grant: proof.is_some().then_some(grant),
                }
            }
            _ => {
                let (peer, endpoints) = (PeerId::from_bytes([4; 32]), self.endpoints.clone());
                Reply::Providers { providers: vec![Provider { peer, endpoints, size: 1, complete: true }] }
            }
        };
        Ok((reply, Bytes::new()))
    }
}

async fn client_of(tracker: &Arc<FakeTracker>, at: &str) -> TrackerClient {
    let dialer = Arc::new(Dialer::new(vec![MemoryNetwork::new().transport()]));
    let listener = dialer.bind(&at.parse().unwrap()).await.unwrap();
    tokio::spawn(serve(listener, Arc::clone(tracker) as Arc<dyn Handler>));
    TrackerClient::new(dialer, at.parse().unwrap())
}

#[tokio::test]
async fn session_is_opened_in_the_expected_catalogue_only() {
    let tracker = Arc::new(FakeTracker::default());
    let client = client_of(&tracker, "memory://tracker:1").await;
    let key = KeyPair::generate();
    let refused = client.open_session(Some(CatalogueId([9; 16])), &key, &[]).await;
    assert!(matches!(refused, Err(TrackerError::OtherCatalogue { .. })));
    assert_eq!(*tracker.proofs.lock(), 0);
    client.open_session(Some(CATALOGUE), &key, &[]).await.unwrap();
    assert_eq!(*tracker.proofs.lock(), 1);
}

#[tokio::test]
async fn only_a_tracker_on_loopback_names_loopback_providers() {
    let named = ["tcp://10.0.0.1:1", "tcp://127.0.0.1:1", "tcp://169.254.169.254:1", "tcp://0.0.0.0:1"];
    let endpoints: Vec<Endpoint> = named.iter().map(|text| text.parse().unwrap()).collect();
    let tracker = Arc::new(FakeTracker { endpoints: endpoints.clone(), ..FakeTracker::default() });
    for (at, usable) in [("memory://tracker:1", 1), ("memory://127.0.0.1:1", 2)] {
        let client = client_of(&tracker, at).await;
        let providers = client.providers(&FileId::from_bytes([1; 32])).await.unwrap();
        assert_eq!(providers[0].endpoints, endpoints[..usable], "{at}");
    }
}
