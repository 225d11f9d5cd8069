//! A node's way to the others: every call is taken down, and after the node's end none gets through.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::protocol::codec::{decode_reply, decode_request};
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Deadline, Listener, Message, Transport};
use tokio_util::sync::CancellationToken;

use super::trace::Trace;

/// The most characters of a request or an error that are shown.
const SHOWN: usize = 160;

/// The transport of one process of a node.
#[derive(Debug)]
pub struct Line {
    inner: Arc<dyn Transport>,
    node: String,
    trace: Trace,
    ended: CancellationToken,
}

impl Line {
    /// The way over `inner` for the process of `node` that ends with `ended`.
    pub fn new(inner: Arc<dyn Transport>, node: &str, trace: &Trace, ended: CancellationToken) -> Self {
        Self { inner, node: node.to_owned(), trace: trace.clone(), ended }
    }
}

#[async_trait]
impl Transport for Line {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        let inner = self.inner.connect(endpoint).await?;
        let (node, trace, ended) = (self.node.clone(), self.trace.clone(), self.ended.clone());
        Ok(Arc::new(Call { inner, node, trace, ended }))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.inner.bind(endpoint).await
    }
}

#[derive(Debug)]
struct Call {
    inner: Arc<dyn Connection>,
    node: String,
    trace: Trace,
    ended: CancellationToken,
}

#[async_trait]
impl Connection for Call {
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
        let request = match decode_request(&header) {
            Ok((_, request)) => shown(&format!("{request:?}")),
            Err(_) => "?".to_owned(),
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
                    Some(Err(error)) => shown(&format!(" {error}")),
                    _ => String::new(),
                };
                let (header, payload) = (short(&reply.header), short(&reply.payload));
                self.trace.note(&self.node, format_args!("<- {to} {id} {header} {payload}{refusal}"));
            }
            Err(error) => {
                self.trace.note(&self.node, format_args!("<- {to} {id} {}", shown(&error.to_string())));
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

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
