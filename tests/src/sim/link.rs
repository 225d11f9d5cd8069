//! The transport of a process: records every call in the trace, fails all calls after the end of the process, and checks to
//! which hosts the process connects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::codec::{decode_reply, decode_request};
use enjambre_core::protocol::message::Reply;
use enjambre_core::{
    Connection, Deadline, EncodedRequest, Endpoint, Message, RequestId, Transport, TransportError,
};
use enjambre_testkit::transport::intercept::{Interceptor, intercepted};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::model::Model;
use super::site::{NAMED, Role, THIRD_PARTY};
use super::trace::Trace;

/// The maximum number of characters of a request or an error in the trace.
const MAX_CHARS: usize = 160;
/// The limit of connections of a process to a host outside the swarm: a burst, and the time until one more is allowed.
const THIRD_PARTY_BURST: u64 = 32;
const THIRD_PARTY_INTERVAL: Duration = Duration::from_millis(500);

/// The connections of one process of a node.
#[derive(Debug)]
pub struct Link {
    node: String,
    trace: Trace,
    model: Arc<Mutex<Model>>,
    ended: CancellationToken,
    started: Instant,
    third_party_connections: AtomicU64,
}

impl Link {
    /// Returns the transport of a process of `node` over `inner`. The process ends when `ended` is cancelled.
    pub fn transport(
        inner: Arc<dyn Transport>,
        node: &str,
        trace: &Trace,
        model: &Arc<Mutex<Model>>,
        ended: CancellationToken,
    ) -> Arc<dyn Transport> {
        let link = Self {
            node: node.to_owned(),
            trace: trace.clone(),
            model: Arc::clone(model),
            ended,
            started: Instant::now(),
            third_party_connections: AtomicU64::new(0),
        };
        intercepted(inner, link)
    }

    fn check_connection(&self, endpoint: &Endpoint) -> Result<(), String> {
        if Role::at(endpoint).is_some() {
            return Ok(());
        }
        if endpoint.address() != Some(THIRD_PARTY.into()) {
            return Err(format!("{} connects to {endpoint} on behalf of a remote", self.node));
        }
        let connections = self.third_party_connections.fetch_add(1, Ordering::Relaxed) + 1;
        let elapsed = self.started.elapsed();
        let intervals = elapsed.as_millis() / THIRD_PARTY_INTERVAL.as_millis();
        if u128::from(connections) > u128::from(THIRD_PARTY_BURST) + intervals {
            let host = endpoint.host();
            return Err(format!("{} opened {connections} connections to {host} in {elapsed:?}", self.node));
        }
        Ok(())
    }

    /// Checks a reply of an honest tracker.
    fn check_reply(&self, reply: &Reply) -> Result<(), String> {
        let Reply::Providers { providers } = reply else { return Ok(()) };
        let mut endpoints = providers.iter().flat_map(|provider| &provider.endpoints);
        match endpoints.find(|endpoint| Role::at(endpoint).is_none()) {
            Some(endpoint) => Err(format!("a tracker announces the foreign endpoint {endpoint}")),
            None => Ok(()),
        }
    }

    fn record(&self, check: Result<(), String>) {
        if let Err(failure) = check {
            self.model.lock().fail(failure);
        }
    }
}

#[async_trait]
impl Interceptor for Link {
    async fn resolve(
        &self,
        _inner: &dyn Transport,
        endpoint: &Endpoint,
    ) -> Result<Vec<Endpoint>, TransportError> {
        Ok(match endpoint.address() {
            Some(_) => vec![endpoint.clone()],
            None => NAMED.map(|address| endpoint.with_address(address.into())).to_vec(),
        })
    }

    fn connecting(&self, endpoint: &Endpoint) {
        self.record(self.check_connection(endpoint));
    }

    async fn call(
        &self,
        inner: &dyn Connection,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        let (to, role) = (inner.endpoint().host(), Role::at(inner.endpoint()));
        let short = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..8].to_owned();
        let request = match EncodedRequest::parse(header.clone()).map(|request| decode_request(&request)) {
            Ok(Ok(request)) => truncated(&format!("{request:?}")),
            _ => "?".to_owned(),
        };
        self.trace.note(&self.node, format_args!("-> {to} {id} {request} {}", short(&header)));
        let deadline = match (deadline, role) {
            // It sends a byte now and then.
            (Deadline::Silence(_), Some(Role::SlowProvider)) => Deadline::Total(Duration::MAX),
            _ => deadline,
        };
        let result = tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(TransportError::Closed),
            result = inner.call(id, header, deadline) => result,
        };
        match &result {
            Ok(message) => {
                let mut refusal = String::new();
                match decode_reply(&message.header) {
                    Some(Err(error)) => refusal = truncated(&format!(" {error}")),
                    Some(Ok(reply)) if role == Some(Role::Tracker) => self.record(self.check_reply(&reply)),
                    _ => {}
                }
                let (header, payload) = (short(&message.header), short(&message.payload));
                self.trace.note(&self.node, format_args!("<- {to} {id} {header} {payload}{refusal}"));
            }
            Err(error) => {
                self.trace.note(&self.node, format_args!("<- {to} {id} {}", truncated(&error.to_string())));
            }
        }
        result
    }
}

fn truncated(text: &str) -> String {
    text.chars().take(MAX_CHARS).collect()
}
