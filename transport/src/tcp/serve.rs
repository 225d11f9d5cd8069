//! The answering side of a connection, from the handshake to its end.

use std::pin::pin;
use std::sync::Arc;

use enjambre_core::{Activity, ConnectionId, Message, TransportError};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::preface;
use super::reader::FrameReader;
use super::writer::{self, Frame};
use crate::guard::disconnect::Disconnect;
use crate::guard::ending::{self, HangUp};
use crate::guard::stream::{self, ReadHalf};
use crate::remote::{CloseOnDrop, Outlet, Remote, ReplyPermit};
use crate::wire::{Accepted, Server};

/// The queue of replies, which the task of the connection sends.
pub(super) struct Queue {
    frames: mpsc::Sender<Frame<ReplyPermit>>,
}

impl Outlet for Queue {
    type Route = ();

    async fn send(
        remote: &Remote<Self>,
        (): (),
        message: Message,
        permit: ReplyPermit,
    ) -> Result<(), TransportError> {
        if remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        // The capacity is the limit of outstanding requests.
        remote.outlet.frames.try_send(Frame::new(message, permit)).map_err(|_| TransportError::Closed)
    }
}

/// Serves the connection until it ends.
pub(super) async fn serve<W>(server: &Server<W>, accepted: Accepted) -> Result<(), Disconnect> {
    let info = accepted.info(ConnectionId::next());
    let Accepted { mut stream, deadline, .. } = accepted;
    let settings = &server.parts.guard.settings;
    tokio::select! {
        biased;
        () = server.stop.cancelled() => return Err(Disconnect::Local),
        exchanged = timeout_at(deadline, preface::exchange(&mut stream)) => {
            exchanged.map_err(|_| Disconnect::HandshakeTimeout)??;
        }
    }
    let (frames, mut queue) = mpsc::channel(settings.in_flight);
    let remote = Remote::new(&server.parts.guard, info, Queue { frames });
    let _close = CloseOnDrop(Arc::clone(&remote));
    let activity = Activity::default();
    {
        let (from, mut to) = stream::split(&mut stream, &server.parts.metrics);
        let mut outbound =
            pin!(writer::send_queued(&mut queue, &mut to, &activity, settings.stall_timeout, &remote.closed));
        tokio::select! {
            ended = receive_requests(server, &remote, from, &activity) => return ended,
            ended = &mut outbound => return ended,
            () = ending::idle_timeout(&activity, settings.idle_timeout, || remote.gate.is_busy()) => return Err(Disconnect::IdleTimeout),
            () = ending::request_timeout(&remote.gate, settings.stall_timeout) => return Err(Disconnect::RequestTimeout),
            () = server.stop.cancelled() => {}
        }
        // Shutdown: sends only the replies that are queued already.
        remote.closed.cancel();
        outbound.await?;
    }
    stream.shutdown().await?;
    ending::linger(&mut stream).await;
    Err(Disconnect::Local)
}

/// Passes requests to the listener until the remote closes the connection.
async fn receive_requests<W>(
    server: &Server<W>,
    remote: &Arc<Remote<Queue>>,
    from: ReadHalf<'_>,
    activity: &Activity,
) -> Result<(), Disconnect> {
    let mut reader = FrameReader::new(from, activity.clone());
    while let Some(lengths) = reader.next(&server.parts.guard.settings).await? {
        let admitted = u32::try_from(lengths.header).unwrap_or(u32::MAX);
        if !remote.gate.try_enter(true, admitted) {
            tokio::select! {
                biased;
                () = reader.source().hung_up() => return Err(Disconnect::Closed),
                () = remote.gate.enter(true, admitted) => {}
            }
        }
        remote.gate.set_arriving(true);
        let header = reader.header(lengths.header).await?;
        reader.skip(lengths.payload).await?;
        remote.gate.set_arriving(false);
        remote.receive(&server.inbox, header, lengths.payload > 0, ());
    }
    Ok(())
}
