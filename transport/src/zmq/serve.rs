//! The answering side of a connection, from the handshake to its end: a guarded stream and its own ROUTER.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::{Activity, ConnectionId, runtime};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use zeromq::{RouterRecvHalf, RouterSocket, SocketRecv, ZmqMessage};

use super::inner::InnerListener;
use super::outlet::{Router, ZmqRemote};
use crate::guard::disconnect::Disconnect;
use crate::guard::ending;
use crate::guard::frame::Direction;
use crate::guard::handshake::{SocketInfo, shake_hands};
use crate::guard::splice::{self, MAX_PONGS};
use crate::guard::stream::{self, Stream};
use crate::remote::CloseOnDrop;
use crate::wire::{Accepted, Inbox, Server};

/// Serves the connection until it ends.
pub(super) async fn serve<W>(
    server: &Server<W>,
    inner_listener: &InnerListener,
    accepted: Accepted,
) -> Result<(), Disconnect> {
    let connection = ConnectionId::next();
    let info = accepted.info(connection);
    let Accepted { stream: mut public, deadline, .. } = accepted;
    // The identity that the remote claims is ignored, so no remote can replace another one.
    let identity = Bytes::copy_from_slice(&[&b"c"[..], &connection.0.to_be_bytes()].concat());
    let handshake = async {
        let router = SocketInfo { socket_type: "ROUTER", identity: b"" };
        shake_hands(&mut public, router, &["DEALER", "REQ"]).await?;
        let guard = SocketInfo { socket_type: "DEALER", identity: &identity };
        inner_listener.connect::<RouterSocket>(guard, "ROUTER").await
    };
    let (router, mut inner) = tokio::select! {
        biased;
        () = server.stop.cancelled() => return Err(Disconnect::Local),
        connected = timeout_at(deadline, handshake) => {
            connected.map_err(|_| Disconnect::HandshakeTimeout)??
        }
    };
    let (router, received) = router.split();
    let outlet = Router::new(identity, router);
    let remote = ZmqRemote::new(&server.parts.guard, info, outlet);
    let _close = CloseOnDrop(Arc::clone(&remote));
    runtime::spawn_in(&server.inbox.tasks, receive(Arc::clone(&remote), server.inbox.clone(), received));
    transfer(server, &remote, &mut public, &mut inner).await
}

/// Transfers messages until the connection ends.
async fn transfer<W>(
    server: &Server<W>,
    remote: &Arc<ZmqRemote>,
    public: &mut Stream,
    inner: &mut UnixStream,
) -> Result<(), Disconnect> {
    let settings = &server.parts.guard.settings;
    let activity = Activity::default();
    let (pong_sender, mut pongs) = mpsc::channel(MAX_PONGS);
    let direction = Direction::Requests {
        header: settings.header as u64,
        payload: settings.payload as u64,
        frames: settings.frames,
    };
    let timeout = settings.stall_timeout;
    {
        let (mut from_public, mut to_public) = stream::split(public, &server.parts.metrics);
        let (mut from_inner, mut to_inner) = inner.split();
        let mut outbound = pin!(splice::outbound(
            &mut from_inner,
            &mut to_public,
            &remote.outlet,
            &activity,
            &mut pongs,
            timeout
        ));
        {
            let inbound = splice::inbound(
                &mut from_public,
                &mut to_inner,
                direction,
                &**remote,
                &activity,
                &pong_sender,
                timeout,
            );
            let busy = || remote.gate.is_busy() || remote.outlet.has_queued();
            tokio::select! {
                ended = inbound => return ended,
                ended = &mut outbound => return ended,
                () = ending::idle_timeout(&activity, settings.idle_timeout, busy) => return Err(Disconnect::IdleTimeout),
                () = ending::request_timeout(&remote.gate, settings.stall_timeout) => return Err(Disconnect::RequestTimeout),
                () = remote.outlet.failed.cancelled() => return Err(Disconnect::Local),
                () = server.stop.cancelled() => {}
            }
        }
        // Shutdown: sends only the replies that are queued already.
        drop(remote.outlet.socket.lock().await);
        remote.closed.cancel();
        tokio::select! {
            ended = outbound => return ended,
            () = remote.outlet.wait_until_empty() => {}
        }
    }
    tokio::io::AsyncWriteExt::shutdown(public).await?;
    ending::linger(public).await;
    Err(Disconnect::Local)
}

/// Receives the requests of the connection from its ROUTER.
async fn receive(remote: Arc<ZmqRemote>, inbox: Inbox, mut router: RouterRecvHalf) {
    loop {
        let received = tokio::select! {
            biased;
            () = remote.closed.cancelled() => return,
            received = router.recv() => received,
        };
        match received {
            Ok(message) => pass_on(&remote, &inbox, message),
            Err(error) => {
                // Unexpected: the guard forwards only valid frames.
                tracing::error!(%error, "private ZeroMQ socket failed");
                return remote.outlet.failed.cancel();
            }
        }
    }
}

fn pass_on(remote: &Arc<ZmqRemote>, inbox: &Inbox, message: ZmqMessage) {
    let mut frames: VecDeque<Bytes> = message.into_vecdeque();
    // The identity.
    frames.pop_front();
    let delimited = frames.len() > 1 && frames[0].is_empty();
    if delimited {
        frames.pop_front();
    }
    let header = frames.pop_front().unwrap_or_default();
    remote.receive(inbox, header, !frames.is_empty(), delimited);
}
