//! A transport that records every call in the trace, and fails all calls after the end of its process.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::codec::{decode_reply, decode_request};
use enjambre_core::{
    Connection, Deadline, EncodedRequest, Endpoint, Listener, Message, RequestId, Transport, TransportError,
};
use tokio_util::sync::CancellationToken;

use super::trace::Trace;

/// The maximum number of characters of a request or an error in the trace.
const MAX_CHARS: usize = 160;

/// The transport of one process of a node.
#[derive(Debug)]
pub struct Link {
    inner: Arc<dyn Transport>,
    node: String,
    trace: Trace,
    ended: CancellationToken,
}

impl Link {
    /// Creates the transport of a process of `node` over `inner`. The process ends when `ended` is cancelled.
    pub fn new(inner: Arc<dyn Transport>, node: &str, trace: &Trace, ended: CancellationToken) -> Self {
        Self { inner, node: node.to_owned(), trace: trace.clone(), ended }
    }
}

#[async_trait]
impl Transport for Link {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        let inner = self.inner.connect(endpoint).await?;
        let (node, trace, ended) = (self.node.clone(), self.trace.clone(), self.ended.clone());
        Ok(Arc::new(LinkConnection { inner, node, trace, ended }))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.inner.bind(endpoint).await
    }
}

#[derive(Debug)]
struct LinkConnection {
    inner: Arc<dyn Connection>,
    node: String,
    trace: Trace,
    ended: CancellationToken,
}

#[async_trait]
impl Connection for LinkConnection {
    fn next_id(&self) -> RequestId {
        self.inner.next_id()
    }

    async fn call(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        let to = self.inner.endpoint().host().to_owned();
        let short = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..8].to_owned();
        let request = match EncodedRequest::parse(header.clone()).map(|request| decode_request(&request)) {
            Ok(Ok(request)) => truncated(&format!("{request:?}")),
            _ => "?".to_owned(),
        };
        self.trace.note(&self.node, format_args!("-> {to} {id} {request} {}", short(&header)));
        let result = tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(TransportError::Closed),
            result = self.inner.call(id, header, deadline) => result,
        };
        match &result {
            Ok(reply) => {
                let refusal = match decode_reply(&reply.header) {
                    Some(Err(error)) => truncated(&format!(" {error}")),
                    _ => String::new(),
                };
                let (header, payload) = (short(&reply.header), short(&reply.payload));
                self.trace.note(&self.node, format_args!("<- {to} {id} {header} {payload}{refusal}"));
            }
            Err(error) => {
                self.trace.note(&self.node, format_args!("<- {to} {id} {}", truncated(&error.to_string())));
            }
        }
        result
    }

    fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

fn truncated(text: &str) -> String {
    text.chars().take(MAX_CHARS).collect()
}
