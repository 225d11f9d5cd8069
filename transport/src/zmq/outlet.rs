//! The queue of the replies of an accepted connection: the sending half of its ROUTER.

use std::collections::VecDeque;

use bytes::Bytes;
use enjambre_core::{Message, TransportError};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use zeromq::{RouterSendHalf, SocketSend, ZmqMessage};

use crate::guard::gate::RequestGate;
use crate::guard::splice::{Inbound, Outbound};
use crate::remote::{Outlet, Remote, ReplyPermit};

pub(super) type ZmqRemote = Remote<Router>;

pub(super) struct Router {
    identity: Bytes,
    /// Locked while a reply is passed to the crate, so that `queued` has the order of the wire.
    pub(super) socket: tokio::sync::Mutex<RouterSendHalf>,
    /// The replies passed to the crate and not sent yet, in order.
    queued: Mutex<VecDeque<Queued>>,
    emptied: Notify,
    /// Cancelled when the ROUTER has failed.
    pub(super) failed: CancellationToken,
}

/// The part of a reply that remains here until it is sent.
struct Queued {
    payload: Bytes,
    _permit: ReplyPermit,
}

impl Router {
    /// Creates the queue for the connection with this identity at the ROUTER.
    pub(super) fn new(identity: Bytes, socket: RouterSendHalf) -> Self {
        Self {
            identity,
            socket: tokio::sync::Mutex::new(socket),
            queued: Mutex::default(),
            emptied: Notify::new(),
            failed: CancellationToken::new(),
        }
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queued.lock().is_empty()
    }

    /// Waits until no reply is queued.
    pub(super) async fn wait_until_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if !self.has_queued() {
                return;
            }
            emptied.await;
        }
    }

    fn frames(&self, delimited: bool, message: &Message) -> ZmqMessage {
        let mut frames = VecDeque::with_capacity(4);
        frames.push_back(self.identity.clone());
        if delimited {
            frames.push_back(Bytes::new());
        }
        frames.push_back(message.header.clone());
        if !message.payload.is_empty() {
            // Marks the position at which the guard inserts the payload.
            frames.push_back(Bytes::new());
        }
        ZmqMessage::try_from(frames).expect("at least two frames")
    }
}

impl Outlet for Router {
    /// Whether the request had an empty delimiter, which the reply repeats.
    type Route = bool;

    async fn send(
        remote: &Remote<Self>,
        delimited: bool,
        message: Message,
        permit: ReplyPermit,
    ) -> Result<(), TransportError> {
        let router = &remote.outlet;
        let frames = router.frames(delimited, &message);
        let mut socket = router.socket.lock().await;
        if remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        router.queued.lock().push_back(Queued { payload: message.payload, _permit: permit });
        if remote.closed.is_cancelled() {
            // The connection has ended after the first check. Earlier replies may still be queued.
            let (reply, empty) = {
                let mut queued = router.queued.lock();
                (queued.pop_back(), queued.is_empty())
            };
            drop(reply);
            if empty {
                router.emptied.notify_waiters();
            }
            return Err(TransportError::Closed);
        }
        // The crate fails if it has detected the end of the connection, like the guard. The connection cannot continue:
        // the payload of this reply would be inserted into the next one.
        socket.send(frames).await.map_err(|_| {
            router.failed.cancel();
            TransportError::Closed
        })
    }

    fn clear(&self) {
        let queued = std::mem::take(&mut *self.queued.lock());
        drop(queued);
    }
}

/// Requests from the remote.
impl Inbound for ZmqRemote {
    fn gate(&self) -> Option<&RequestGate> {
        Some(&self.gate)
    }
}

/// Replies to the remote.
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
        let sent = messages.min(queued.len());
        let released: Vec<_> = queued.drain(..sent).collect();
        let empty = queued.is_empty();
        drop(queued);
        drop(released);
        if empty {
            self.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Guard;
    use crate::settings::TransportSettings;
    use crate::wire::Inbox;
    use enjambre_core::transport::envelope;
    use enjambre_core::{ConnectionHandle, ConnectionId, Message, PeerInfo, RequestId};
    use tokio::sync::mpsc;
    use tokio_util::task::TaskTracker;
    use zeromq::{RouterSocket, Socket};

    #[tokio::test]
    async fn failure_of_the_router_ends_the_connection() {
        let guard = Guard::new(TransportSettings::default()).unwrap();
        // The ROUTER has no connection with this identity.
        let (socket, _) = RouterSocket::new().split();
        let router = Router::new(Bytes::from_static(b"c1"), socket);
        let (connection, handle) = (ConnectionId::next(), ConnectionHandle::default());
        let info = PeerInfo { connection, handle, address: None, identity: None };
        let remote = ZmqRemote::new(&guard, info, router);
        let (requests, mut received) = mpsc::unbounded_channel();
        let inbox = Inbox { requests, tasks: TaskTracker::new() };
        let header = envelope::encode_request(RequestId(1), &"status");
        remote.receive(&inbox, header.clone(), false, false);
        let incoming = received.recv().await.unwrap();
        let reply = Message { header, payload: Bytes::from_static(b"payload") };
        assert!(matches!(incoming.reply.send(reply).await, Err(TransportError::Closed)));
        assert!(remote.outlet.failed.is_cancelled());
    }
}
