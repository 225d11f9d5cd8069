//! The requesting side that all transports share: ids, limits, deadlines, and closing.
//!
//! A transport manages its links by itself and defines how a request gets its reply over a link. The outstanding calls of a
//! link are in [`super::calls`].

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::calls::{Activity, PendingCall};
use super::envelope::RequestId;
use super::error::TransportError;
use super::interface::Deadline;
use super::message::{Message, MessageLimits};
use crate::model::endpoint::Endpoint;

/// The part of a connection that outlives its links. Dropping a `Caller` closes the connection.
#[derive(Debug)]
pub struct Caller {
    endpoint: Endpoint,
    limits: MessageLimits,
    next_id: AtomicU64,
    activity: Activity,
    closed: CancellationToken,
}

impl Caller {
    /// Creates the state of a connection to this endpoint.
    pub fn new(endpoint: Endpoint, limits: MessageLimits) -> Self {
        Self {
            endpoint,
            limits,
            next_id: AtomicU64::new(1),
            activity: Activity::default(),
            closed: CancellationToken::new(),
        }
    }

    /// The endpoint of the remote.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns a new request id.
    pub fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// The clock of received bytes, which all links update.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The token that is cancelled when the connection is closed.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Runs `exchange`, which sends a request with a header of this length and returns its reply. Drops it at the deadline
    /// and when the connection is closed.
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

    /// Waits for the reply to a sent call.
    pub async fn reply(&self, mut call: PendingCall) -> Result<Message, TransportError> {
        let replaced = || Err(TransportError::Lost { endpoint: self.endpoint.clone() });
        call.reply().await.unwrap_or_else(replaced)
    }

    /// Closes the connection. All calls return [`TransportError::Closed`].
    pub fn close(&self) {
        self.closed.cancel();
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.close();
    }
}
