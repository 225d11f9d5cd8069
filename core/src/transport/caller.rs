//! What the asking side of every transport does alike: ids, limits, deadlines, and the end of a connection.
//!
//! A transport keeps its links itself, and says how a request gets its reply over one. The calls under way on one link are
//! [`super::calls`].

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::calls::{Activity, PendingCall};
use super::envelope::RequestId;
use super::error::TransportError;
use super::{Deadline, Message, MessageLimits};
use crate::model::endpoint::Endpoint;

/// The part of a connection that outlives its links. Dropping it closes the connection.
#[derive(Debug)]
pub struct Caller {
    endpoint: Endpoint,
    limits: MessageLimits,
    next_id: AtomicU64,
    activity: Activity,
    closed: CancellationToken,
}

impl Caller {
    /// For a connection to this endpoint.
    pub fn new(endpoint: Endpoint, limits: MessageLimits) -> Self {
        Self {
            endpoint,
            limits,
            next_id: AtomicU64::new(1),
            activity: Activity::default(),
            closed: CancellationToken::new(),
        }
    }

    /// Where requests go.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// An id that no other call of the connection has.
    pub fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// What the links tell of everything that they hear.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Is cancelled when the connection is closed; ends everything that belongs to it.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Makes a call: `exchange` brings the reply to a request with so long a header, or is dropped at the deadline or
    /// when the connection is closed.
    pub async fn call(
        &self,
        header_length: usize,
        deadline: Deadline,
        exchange: impl Future<Output = Result<Message, TransportError>>,
    ) -> Result<Message, TransportError> {
        self.limits.check_header(header_length)?;
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(TransportError::Closed),
            reply = self.activity.within(deadline, exchange) => {
                reply.unwrap_or_else(|| Err(TransportError::Deadline { endpoint: self.endpoint.clone() }))
            }
        }
    }

    /// The reply to a call that was sent.
    pub async fn reply(&self, mut call: PendingCall) -> Result<Message, TransportError> {
        let replaced = || Err(TransportError::Lost { endpoint: self.endpoint.clone() });
        call.reply().await.unwrap_or_else(replaced)
    }

    /// Closes the connection: every call ends with [`TransportError::Closed`].
    pub fn close(&self) {
        self.closed.cancel();
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.close();
    }
}
