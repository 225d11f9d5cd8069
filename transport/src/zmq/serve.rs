//! One accepted connection from its greeting to its end: a guarded stream with a ROUTER of its own behind it.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::transport::ConnectionId;
use enjambre_core::transport::calls::Activity;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use zeromq::{RouterRecvHalf, RouterSocket, SocketRecv, ZmqMessage};

use super::Zmq;
use super::outlet::{Router, ZmqRemote};
use crate::guard::cutoff::CutOff;
use crate::guard::ending;
use crate::guard::frame::Direction;
use crate::guard::handshake::{Introduction, shake_hands};
use crate::guard::splice::{self, MAX_PONGS};
use crate::guard::stream::Stream;
use crate::listener::{Accepted, Inbox, Server};
use crate::remote::{Arrived, ConnectionEnd};

/// Conducts the connection until it ends.
pub(super) async fn serve(server: &Server<Zmq>, accepted: Accepted) -> Result<(), CutOff> {
    let connection = ConnectionId::next();
    let info = accepted.info(connection);
    let Accepted { stream: mut public, until, .. } = accepted;
    // Ours, whatever the remote calls itself: nobody can take another's place.
    let identity = Bytes::copy_from_slice(&[&b"c"[..], &connection.0.to_be_bytes()].concat());
    let greeting = async {
        let us = Introduction { socket_type: "ROUTER", identity: b"" };
        shake_hands(&mut public, us, &["DEALER", "REQ"]).await?;
        let guard = Introduction { socket_type: "DEALER", identity: &identity };
        server.wire.doorway.connect::<RouterSocket>(guard, "ROUTER").await
    };
    let (router, mut inner) = tokio::select! {
        biased;
        () = server.stop.cancelled() => return Err(CutOff::Local),
        greeted = timeout_at(until, greeting) => {
            greeted.map_err(|_| CutOff::HandshakeTimeout)??
        }
    };
    let (router, received) = router.split();
    let outlet = Router::new(identity, router);
    let remote = ZmqRemote::new(&server.guard, info, outlet);
    let _end = ConnectionEnd(Arc::clone(&remote));
    server.inbox.tasks.spawn(receive(Arc::clone(&remote), server.inbox.clone(), received));
    carry(server, &remote, &mut public, &mut inner).await
}

/// Carries messages until the connection ends.
async fn carry(
    server: &Server<Zmq>,
    remote: &Arc<ZmqRemote>,
    public: &mut Stream,
    inner: &mut UnixStream,
) -> Result<(), CutOff> {
    let settings = &server.guard.settings;
    let activity = Activity::default();
    let (pong_sender, mut pongs) = mpsc::channel(MAX_PONGS);
    let direction = Direction::Requests {
        header: settings.header as u64,
        payload: settings.payload as u64,
        frames: settings.frames,
    };
    let stalled = settings.stalled;
    {
        let (mut from_public, mut to_public) = public.split();
        let (mut from_inner, mut to_inner) = inner.split();
        let mut outbound = pin!(splice::outbound(
            &mut from_inner,
            &mut to_public,
            &remote.outlet,
            &activity,
            &mut pongs,
            stalled
        ));
        {
            let inbound = splice::inbound(
                &mut from_public,
                &mut to_inner,
                direction,
                &**remote,
                &activity,
                &pong_sender,
                stalled,
            );
            let busy = || remote.gate.is_busy() || remote.outlet.has_queued();
            tokio::select! {
                ended = inbound => return ended,
                ended = &mut outbound => return ended,
                () = ending::idle(&activity, settings.idle, busy) => return Err(CutOff::Idle),
                () = ending::dawdling(&remote.gate, settings.stalled) => return Err(CutOff::Dawdling),
                () = remote.outlet.failed.cancelled() => return Err(CutOff::Local),
                () = server.stop.cancelled() => {}
            }
        }
        // Stopping: no more requests, and no replies but those that were given.
        drop(remote.outlet.socket.lock().await);
        remote.closed.cancel();
        tokio::select! {
            ended = outbound => return ended,
            () = remote.outlet.emptied.wait(|| !remote.outlet.has_queued()) => {}
        }
    }
    tokio::io::AsyncWriteExt::shutdown(public).await?;
    ending::linger(public).await;
    Err(CutOff::Local)
}

/// Takes the requests of the connection from its ROUTER.
async fn receive(remote: Arc<ZmqRemote>, inbox: Inbox, mut router: RouterRecvHalf) {
    loop {
        let received = tokio::select! {
            biased;
            () = remote.closed.cancelled() => return,
            received = router.recv() => received,
        };
        match received {
            Ok(message) => hand_over(&remote, &inbox, message),
            Err(error) => {
                // The guard lets nothing through that could make it fail.
                tracing::error!(%error, "the socket behind the guard failed");
                return remote.outlet.failed.cancel();
            }
        }
    }
}

fn hand_over(remote: &Arc<ZmqRemote>, inbox: &Inbox, message: ZmqMessage) {
    let mut frames: VecDeque<Bytes> = message.into_vecdeque();
    // The identity, which is known.
    frames.pop_front();
    let bytes = frames.iter().map(Bytes::len).sum();
    let delimited = frames.len() > 1 && frames[0].is_empty();
    if delimited {
        frames.pop_front();
    }
    let header = frames.pop_front().unwrap_or_default();
    remote.receive(inbox, Arrived { header, bytes, has_payload: !frames.is_empty(), way: delimited });
}
