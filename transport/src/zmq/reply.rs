//! One accepted connection as the answering side sees it, and the way back for its replies.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::transport::budget::{ConnectionBudget, Reservation};
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Message, MessageLimits, PeerInfo, ReplySink};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use zeromq::{RouterSendHalf, SocketSend, ZmqMessage};

use crate::guard::splice::{Emptied, Inbound, RequestGate};

/// An accepted connection. The guard, the receiving task and every unanswered request hold it.
pub(super) struct Remote {
    pub(super) info: PeerInfo,
    pub(super) identity: Bytes,
    pub(super) gate: RequestGate,
    pub(super) limits: MessageLimits,
    pub(super) budget: ConnectionBudget,
    /// Locked while a reply is handed over, so that `queued` has the order of the wire.
    pub(super) router: tokio::sync::Mutex<RouterSendHalf>,
    /// What the replies hold that were handed to the crate and have not left, in the order of their sending.
    pub(super) queued: Mutex<VecDeque<Reservation>>,
    pub(super) emptied: Emptied,
    /// The connection is gone, or takes no more replies.
    pub(super) closed: CancellationToken,
    /// The ROUTER failed, and the connection has to end.
    pub(super) failed: CancellationToken,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Remote {
    /// The oldest replies have left.
    pub(super) fn sent(&self, messages: usize) {
        if messages == 0 {
            return;
        }
        let mut queued = self.queued.lock();
        let left = messages.min(queued.len());
        let freed: Vec<_> = queued.drain(..left).collect();
        let empty = queued.is_empty();
        drop(queued);
        drop(freed);
        if empty {
            self.emptied.signal();
        }
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queued.lock().is_empty()
    }
}

/// What the guard asks about the requests of a connection.
impl Inbound for Remote {
    fn gate(&self) -> Option<&RequestGate> {
        Some(&self.gate)
    }

    fn passed(&self, _messages: u64) {}
}

/// The way back for the reply to one request; dropping it ends the request.
#[derive(Debug)]
pub(super) struct ZmqReply {
    pub(super) remote: Arc<Remote>,
    /// The bytes that the request took at the gate.
    pub(super) request: usize,
    /// Whether the request began with an empty delimiter, which the reply then does, too.
    pub(super) delimited: bool,
    pub(super) reserved: Option<Reservation>,
}

impl Drop for ZmqReply {
    fn drop(&mut self) {
        self.remote.gate.leave(self.request);
    }
}

impl ZmqReply {
    fn frames(&self, message: Message) -> ZmqMessage {
        let mut frames = VecDeque::with_capacity(4);
        frames.push_back(self.remote.identity.clone());
        if self.delimited {
            frames.push_back(Bytes::new());
        }
        frames.push_back(message.header);
        if !message.payload.is_empty() {
            frames.push_back(message.payload);
        }
        ZmqMessage::try_from(frames).expect("there are at least two frames")
    }
}

#[async_trait]
impl ReplySink for ZmqReply {
    async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError> {
        if self.remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        match &mut self.reserved {
            Some(before) if before.bytes() > 0 => before.merge(self.remote.budget.take(bytes)),
            reserved => {
                *reserved = Some(tokio::select! {
                    biased;
                    () = self.remote.closed.cancelled() => return Err(TransportError::Closed),
                    reserved = self.remote.budget.reserve(bytes) => reserved,
                });
            }
        }
        Ok(())
    }

    async fn send(mut self: Box<Self>, message: Message) -> Result<(), TransportError> {
        self.remote.limits.check(&message)?;
        let bytes = message.header.len() + message.payload.len();
        let before = self.reserved.as_ref().map_or(0, Reservation::bytes);
        self.reserve(bytes.saturating_sub(before)).await?;
        let mut reserved = self.reserved.take().ok_or(TransportError::Closed)?;
        reserved.shrink_to(bytes);
        let frames = self.frames(message);
        let mut router = self.remote.router.lock().await;
        if self.remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        self.remote.queued.lock().push_back(reserved);
        // The crate fails where it has noticed already that the connection is gone; so has the guard.
        router.send(frames).await.map_err(|_| TransportError::Closed)
    }
}
