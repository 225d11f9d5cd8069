//! One accepted connection from its greeting to its end.

use std::pin::pin;
use std::sync::Arc;

use enjambre_core::transport::ConnectionId;
use enjambre_core::transport::Message;
use enjambre_core::transport::calls::Activity;
use enjambre_core::transport::error::TransportError;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::reader::FrameReader;
use super::writer::{self, Frame};
use super::{Tcp, preface};
use crate::guard::cutoff::CutOff;
use crate::guard::ending::{self, HangUp};
use crate::guard::stream::ReadHalf;
use crate::listener::{Accepted, Server};
use crate::remote::{Arrived, ConnectionEnd, Held, Outlet, Remote};

/// The way out for replies: a queue that the connection's task sends from.
pub(super) struct Queue {
    frames: mpsc::Sender<Frame<Held>>,
}

impl Outlet for Queue {
    type Way = ();

    async fn send(remote: &Remote<Self>, (): (), message: Message, held: Held) -> Result<(), TransportError> {
        if remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        // There is room for a reply to each request that may be in flight.
        remote.outlet.frames.try_send(Frame::new(message, held)).map_err(|_| TransportError::Closed)
    }
}

/// Conducts the connection until it ends.
pub(super) async fn serve(server: &Server<Tcp>, accepted: Accepted) -> Result<(), CutOff> {
    let info = accepted.info(ConnectionId::next());
    let Accepted { mut stream, until, .. } = accepted;
    let settings = &server.guard.settings;
    tokio::select! {
        biased;
        () = server.stop.cancelled() => return Err(CutOff::Local),
        greeted = timeout_at(until, preface::exchange(&mut stream)) => {
            greeted.map_err(|_| CutOff::HandshakeTimeout)??;
        }
    }
    let (frames, mut queue) = mpsc::channel(settings.in_flight);
    let remote = Remote::new(&server.guard, info, Queue { frames });
    let _end = ConnectionEnd(Arc::clone(&remote));
    let activity = Activity::default();
    {
        let (from, mut to) = stream.split();
        let mut outbound =
            pin!(writer::send_queued(&mut queue, &mut to, &activity, settings.stalled, &remote.closed));
        tokio::select! {
            ended = requests(server, &remote, from, &activity) => return ended,
            ended = &mut outbound => return ended,
            () = ending::idle(&activity, settings.idle, || remote.gate.is_busy()) => return Err(CutOff::Idle),
            () = ending::dawdling(&remote.gate, settings.stalled) => return Err(CutOff::Dawdling),
            () = server.stop.cancelled() => {}
        }
        // Stopping: no more requests, and no replies but those that were given.
        remote.closed.cancel();
        outbound.await?;
    }
    stream.shutdown().await?;
    ending::linger(&mut stream).await;
    Err(CutOff::Local)
}

/// Hands requests over to the listener until the remote closes the connection.
async fn requests(
    server: &Server<Tcp>,
    remote: &Arc<Remote<Queue>>,
    from: ReadHalf<'_>,
    activity: &Activity,
) -> Result<(), CutOff> {
    let mut reader = FrameReader::new(from, activity.clone());
    while let Some(lengths) = reader.next(&server.guard.settings).await? {
        let bytes = lengths.header;
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        if !remote.gate.try_enter(true, wanted) {
            tokio::select! {
                biased;
                () = reader.source().hung_up() => return Err(CutOff::Closed),
                () = remote.gate.enter(true, wanted) => {}
            }
        }
        remote.gate.set_arriving(true);
        let header = reader.header(lengths.header).await?;
        reader.skip(lengths.payload).await?;
        remote.gate.set_arriving(false);
        let has_payload = lengths.payload > 0;
        remote.receive(&server.inbox, Arrived { header, bytes, has_payload, way: () });
    }
    Ok(())
}
