//! The way out for the replies of one accepted connection: the sending half of its ROUTER.

use std::collections::VecDeque;

use bytes::Bytes;
use enjambre_core::transport::Message;
use enjambre_core::transport::error::TransportError;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use zeromq::{RouterSendHalf, SocketSend, ZmqMessage};

use crate::guard::gate::RequestGate;
use crate::guard::splice::{Emptied, Inbound, Outbound, Payloads};
use crate::remote::{Held, Outlet, Remote};

pub(super) type ZmqRemote = Remote<Router>;

pub(super) struct Router {
    identity: Bytes,
    /// Locked while a reply is handed over, so that `queued` has the order of the wire.
    pub(super) socket: tokio::sync::Mutex<RouterSendHalf>,
    /// The replies that were handed to the crate and have not left, in the order of their sending.
    queued: Mutex<VecDeque<Queued>>,
    pub(super) emptied: Emptied,
    /// The ROUTER failed, and the connection has to end.
    pub(super) failed: CancellationToken,
}

/// What stays here of a reply until it has left.
struct Queued {
    payload: Bytes,
    _held: Held,
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

    pub(super) fn has_queued(&self) -> bool {
        !self.queued.lock().is_empty()
    }

    fn frames(&self, delimited: bool, message: &Message) -> ZmqMessage {
        let mut frames = VecDeque::with_capacity(4);
        frames.push_back(self.identity.clone());
        if delimited {
            frames.push_back(Bytes::new());
        }
        frames.push_back(message.header.clone());
        if !message.payload.is_empty() {
            // The guard puts the payload in its place.
            frames.push_back(Bytes::new());
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
        let frames = router.frames(delimited, &message);
        let mut socket = router.socket.lock().await;
        if remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        router.queued.lock().push_back(Queued { payload: message.payload, _held: held });
        if remote.closed.is_cancelled() {
            // It ended in between, and nobody else forgets it. Those before it may still be on their way.
            let (own, empty) = {
                let mut queued = router.queued.lock();
                (queued.pop_back(), queued.is_empty())
            };
            drop(own);
            if empty {
                router.emptied.signal();
            }
            return Err(TransportError::Closed);
        }
        // The crate fails where it has noticed already that the connection is gone; so has the guard. And it would not
        // do to go on: the payload waits for a place that never comes, and would take the next one.
        socket.send(frames).await.map_err(|_| {
            router.failed.cancel();
            TransportError::Closed
        })
    }

    fn forget(&self) {
        let queued = std::mem::take(&mut *self.queued.lock());
        drop(queued);
    }
}

/// What the guard asks about the requests of a connection.
impl Inbound for ZmqRemote {
    fn gate(&self) -> Option<&RequestGate> {
        Some(&self.gate)
    }

    fn payloads(&self) -> Option<&Payloads> {
        None
    }

    fn passed(&self, _messages: u64) {}
}

/// What the guard sends besides what it gets from the ROUTER.
impl Outbound for Router {
    fn payload(&self, messages: usize) -> Option<Bytes> {
        let mut queued = self.queued.lock();
        let payload = std::mem::take(&mut queued.get_mut(messages)?.payload);
        (!payload.is_empty()).then_some(payload)
    }

    fn sent(&self, messages: usize) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Guard;
    use crate::listener::Inbox;
    use crate::remote::Arrived;
    use crate::settings::TransportSettings;
    use enjambre_core::transport::envelope::{self, RequestId};
    use enjambre_core::transport::{ConnectionHandle, ConnectionId, Message, PeerInfo};
    use tokio::sync::mpsc;
    use tokio_util::task::TaskTracker;
    use zeromq::{RouterSocket, Socket};

    #[tokio::test]
    async fn a_reply_that_the_crate_does_not_take_ends_the_connection() {
        let guard = Guard::new(TransportSettings::default()).unwrap();
        // It knows nobody of this name.
        let (socket, _) = RouterSocket::new().split();
        let router = Router::new(Bytes::from_static(b"c1"), socket);
        let (connection, handle) = (ConnectionId::next(), ConnectionHandle::default());
        let info = PeerInfo { connection, handle, address: None, identity: None };
        let remote = ZmqRemote::new(&guard, info, router);
        let (requests, mut received) = mpsc::unbounded_channel();
        let inbox = Inbox { requests, tasks: TaskTracker::new() };
        let header = envelope::malformed_reply(Some(RequestId(1)), "");
        let arrived = Arrived { header: header.clone(), bytes: 0, has_payload: false, way: false };
        remote.receive(&inbox, arrived);
        let incoming = received.recv().await.unwrap();
        let reply = Message { header, payload: Bytes::from_static(b"payload") };
        assert!(matches!(incoming.reply.send(reply).await, Err(TransportError::Closed)));
        assert!(remote.outlet.failed.is_cancelled());
    }
}
