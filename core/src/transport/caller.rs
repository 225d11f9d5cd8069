//! The requesting side that all transports share: ids, limits, deadlines, and closing.
//!
//! A transport manages its links by itself and defines how a request gets its reply over a link ([`Exchange`]). The
//! outstanding calls of a link are in [`super::calls`].

use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::calls::{Activity, PendingCall};
use super::envelope::RequestId;
use super::error::TransportError;
use super::interface::{Connection, Deadline};
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

    /// The clock of received bytes, which all links update.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The token that is cancelled when the connection is closed.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Waits for the reply to a sent call.
    pub async fn reply(&self, mut call: PendingCall) -> Result<Message, TransportError> {
        let replaced = || Err(TransportError::Lost { endpoint: self.endpoint.clone() });
        call.reply().await.unwrap_or_else(replaced)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// A connection with a [`Caller`]. Every `Exchange` is a [`Connection`].
pub trait Exchange: Debug + Send + Sync + 'static {
    /// The state of the connection.
    fn caller(&self) -> &Caller;

    /// Sends a request and returns its reply. The future is dropped at the deadline of the call, and when the connection is
    /// closed.
    fn exchange(
        &self,
        id: RequestId,
        header: Bytes,
    ) -> impl Future<Output = Result<Message, TransportError>> + Send;
}

#[async_trait]
impl<E: Exchange> Connection for E {
    fn next_id(&self) -> RequestId {
        RequestId(self.caller().next_id.fetch_add(1, Ordering::Relaxed))
    }

    async fn call(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        let caller = self.caller();
        caller.limits.check_header(header.len())?;
        let reply = tokio::select! {
            biased;
            () = caller.closed.cancelled() => Err(TransportError::Closed),
            reply = caller.activity.within(deadline, self.exchange(id, header)) => {
                reply.unwrap_or_else(|| Err(TransportError::Deadline { endpoint: caller.endpoint.clone() }))
            }
        };
        // Closing the connection also ends its link, which the exchange may notice first.
        reply.map_err(|error| if caller.closed.is_cancelled() { TransportError::Closed } else { error })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.caller().endpoint
    }

    async fn close(&self) {
        self.caller().closed.cancel();
    }
}
