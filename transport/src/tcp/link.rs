//! One established connection of the asking side.

use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::Message;
use enjambre_core::transport::calls::{Activity, Calls};
use enjambre_core::transport::envelope;
use enjambre_core::transport::error::TransportError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::preface;
use super::reader::FrameReader;
use super::writer::{self, Frame};
use crate::guard::cutoff::CutOff;
use crate::guard::stream::Stream;
use crate::guard::{Guard, ending};
use crate::wire::{Dialled, Link};

/// After so many replies in a row that nobody asked for, the remote is not one to talk to.
const MAX_UNMATCHED: u64 = 1024;
/// After a payload of so many bytes, those who wait for it and who send requests have their turn.
const LARGE: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct TcpLink {
    calls: Arc<Calls>,
    requests: mpsc::Sender<Frame<()>>,
    /// Ends the link.
    kill: CancellationToken,
}

impl Link for TcpLink {
    fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    fn is_up(&self) -> bool {
        !self.calls.is_over() && !self.kill.is_cancelled()
    }

    async fn send(&self, header: Bytes) {
        let frame = Frame::new(Message { header, payload: Bytes::new() }, ());
        if self.requests.send(frame).await.is_err() {
            self.kill.cancel();
        }
    }
}

impl TcpLink {
    /// Greets, and starts to carry messages until `kill` is cancelled.
    pub(super) async fn establish(dialled: Dialled) -> Result<Arc<Self>, CutOff> {
        let Dialled { guard, mut stream, endpoint, activity, kill } = dialled;
        preface::exchange(&mut stream).await?;
        let (requests, queue) = mpsc::channel(guard.settings.in_flight);
        let link = Arc::new(Self { calls: Calls::new(), requests, kill });
        tokio::spawn(Arc::clone(&link).run(guard, endpoint, stream, activity, queue));
        Ok(link)
    }

    async fn run(
        self: Arc<Self>,
        guard: Arc<Guard>,
        endpoint: Endpoint,
        mut stream: Stream,
        activity: Activity,
        mut queue: mpsc::Receiver<Frame<()>>,
    ) {
        let reason = {
            let settings = &guard.settings;
            let (from, mut to) = stream.split();
            // What goes out counts for the idle time, but not for the silence of the remote.
            let traffic = Activity::default();
            let never = CancellationToken::new();
            let outbound = writer::send_queued(&mut queue, &mut to, &traffic, settings.stalled, &never);
            let inbound = self.replies(&guard, FrameReader::new(from, activity));
            tokio::select! {
                biased;
                () = self.kill.cancelled() => CutOff::Local,
                // First, so that requests leave before more replies are read.
                ended = outbound => ended.err().unwrap_or(CutOff::Local),
                ended = inbound => ended.err().unwrap_or(CutOff::Closed),
                () = ending::retire(&traffic, settings.idle, &self.calls) => CutOff::Idle,
            }
        };
        drop(stream);
        guard.log.note(&endpoint, &reason);
        self.calls.fail(|| TransportError::Lost { endpoint: endpoint.clone() });
        self.kill.cancel();
    }

    /// Hands replies to their calls until the remote closes the connection.
    async fn replies<R: tokio::io::AsyncRead + Unpin>(
        &self,
        guard: &Guard,
        mut reader: FrameReader<R>,
    ) -> Result<(), CutOff> {
        while let Some(lengths) = reader.next(&guard.settings).await? {
            let header = reader.header(lengths.header).await?;
            let id = envelope::read(&header).and_then(|envelope| envelope.id);
            let payload = if lengths.payload == 0 {
                Bytes::new()
            } else if id.is_some_and(|id| self.calls.is_waiting(id)) {
                let mut payload = guard.buffers.take(lengths.payload);
                reader.exact(&mut payload).await?;
                payload.freeze()
            } else {
                reader.skip(lengths.payload).await?;
                Bytes::new()
            };
            self.calls.deliver_to(id, Message { header, payload });
            if self.calls.unmatched_in_a_row() > MAX_UNMATCHED {
                return Err(CutOff::Protocol("it sends replies that nobody asked for"));
            }
            if lengths.payload >= LARGE {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}
