//! The way out for the replies of one accepted connection: the sending half of its ROUTER.

use std::collections::VecDeque;

use bytes::Bytes;
use enjambre_core::transport::Message;
use enjambre_core::transport::error::TransportError;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use zeromq::{RouterSendHalf, SocketSend, ZmqMessage};

use crate::guard::gate::RequestGate;
use crate::guard::splice::{Emptied, Inbound};
use crate::remote::{Held, Outlet, Remote};

pub(super) type ZmqRemote = Remote<Router>;

pub(super) struct Router {
    identity: Bytes,
    /// Locked while a reply is handed over, so that `queued` has the order of the wire.
    pub(super) socket: tokio::sync::Mutex<RouterSendHalf>,
    /// What the replies hold that were handed to the crate and have not left, in the order of their sending.
    queued: Mutex<VecDeque<Held>>,
    pub(super) emptied: Emptied,
    /// The ROUTER failed, and the connection has to end.
    pub(super) failed: CancellationToken,
}

impl Router {
    /// For the connection that the ROUTER knows by this identity.
    pub(super) fn new(identity: Bytes, socket: RouterSendHalf) -> Self {
        Self {
            identity,
            socket: tokio::sync::Mutex::new(socket),
            queued: Mutex::default(),
            emptied: Emptied::default(),
            failed: CancellationToken::new(),
        }
    }

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

    /// The connection has ended: what the replies held that have not left is free again.
    pub(super) fn forget(&self) {
        let queued = std::mem::take(&mut *self.queued.lock());
        drop(queued);
    }

    fn frames(&self, delimited: bool, message: Message) -> ZmqMessage {
        let mut frames = VecDeque::with_capacity(4);
        frames.push_back(self.identity.clone());
        if delimited {
            frames.push_back(Bytes::new());
        }
        frames.push_back(message.header);
        if !message.payload.is_empty() {
            frames.push_back(message.payload);
        }
        ZmqMessage::try_from(frames).expect("there are at least two frames")
    }
}

impl Outlet for Router {
    /// Whether the request began with an empty delimiter, which the reply then does, too.
    type Way = bool;

    async fn send(
        remote: &Remote<Self>,
        delimited: bool,
        message: Message,
        held: Held,
    ) -> Result<(), TransportError> {
        let router = &remote.outlet;
        let frames = router.frames(delimited, message);
        let mut socket = router.socket.lock().await;
        if remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        router.queued.lock().push_back(held);
        // The crate fails where it has noticed already that the connection is gone; so has the guard.
        socket.send(frames).await.map_err(|_| TransportError::Closed)
    }
}

/// What the guard asks about the requests of a connection.
impl Inbound for ZmqRemote {
    fn gate(&self) -> Option<&RequestGate> {
        Some(&self.gate)
    }

    fn passed(&self, _messages: u64) {}
}
