//! A malicious tracker in the configuration of all peers. It claims to serve the catalogue of an honest tracker, to which it
//! relays every request, so that peers send it proofs of their identity and session ids. To lists of providers it adds forged
//! ones at hosts outside the swarm.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::client::call;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::{
    Connection, Deadline, Endpoint, Listener, PeerId, PeerInfo, Provider, ReplySink, RequestId,
};
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;

use super::model::Model;
use super::site::{FOREIGN, Site, endpoint};

const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(5));
/// The number of forged providers. Together they have more endpoints at one host than a peer may connect to at once.
const FORGED_PROVIDERS: usize = 24;

/// A running malicious tracker.
#[derive(Debug)]
pub struct MaliciousTracker {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether it is the first tracker in the configuration of peers, or the last one.
    pub is_first: bool,
    listener: Arc<dyn Listener>,
    serving: JoinHandle<()>,
}

impl MaliciousTracker {
    /// Starts a malicious tracker that relays requests to the tracker `victim`, with its own identity or without one.
    pub async fn start(
        site: &Site,
        victim: &Site,
        model: &Arc<Mutex<Model>>,
        random: &mut StdRng,
    ) -> Result<Self, String> {
        let (transport, to) = match random.random_bool(0.5) {
            true => (site.plaintext(), victim.plaintext_endpoint()),
            false => (site.transport(), victim.endpoint.clone()),
        };
        let victim = transport.connect(&to).await.map_err(|error| error.to_string())?;
        let listener = site.transport().bind(&site.endpoint).await.map_err(|error| error.to_string())?;
        let forged = (0..FORGED_PROVIDERS).map(|_| forged_provider(random)).collect();
        let relay = Arc::new(Relay { victim, forged, model: Arc::clone(model) });
        let serving = tokio::spawn(serve(Arc::clone(&listener), relay));
        Ok(Self { endpoint: site.endpoint.clone(), is_first: random.random_bool(0.5), listener, serving })
    }

    /// Stops the tracker.
    pub async fn stop(self) {
        self.listener.shutdown(Duration::ZERO).await;
        let _ended = self.serving.await;
    }
}

fn forged_provider(random: &mut StdRng) -> Provider {
    let peer = PeerId::from_bytes(random.random());
    let endpoints = FOREIGN.map(|host| endpoint(host, random.random_range(1..=u16::MAX))).to_vec();
    Provider { peer, endpoints, size: 1, complete: true }
}

struct Relay {
    victim: Arc<dyn Connection>,
    forged: Vec<Provider>,
    model: Arc<Mutex<Model>>,
}

#[async_trait]
impl Handler for Relay {
    async fn handle(
        &self,
        _id: RequestId,
        request: Request,
        _peer: &PeerInfo,
        _sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let relayed = call(&*self.victim, &request, DEADLINE).await;
        let (mut reply, payload) = relayed.map_err(|error| {
            let unreachable = || ErrorReply::new(ErrorCode::Internal, "the other tracker is unreachable");
            error.remote().cloned().unwrap_or_else(unreachable)
        })?;
        match &mut reply {
            Reply::Providers { providers } => providers.extend_from_slice(&self.forged),
            Reply::OpenSession { grant: None, .. }
            | Reply::Find { .. }
            | Reply::List { .. }
            | Reply::TrackerStatus(_) => {}
            // All other requests are those of a peer.
            _ => {
                let failure = format!("a tracker accepted a relayed request of a peer: {request:?}");
                self.model.lock().fail(failure);
            }
        }
        Ok((reply, payload))
    }
}
