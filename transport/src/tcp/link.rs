//! The requesting side of an established connection.

use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::transport::calls::Calls;
use enjambre_core::transport::envelope;
use enjambre_core::transport::metrics::TransportMetrics;
use enjambre_core::{Activity, Endpoint, Message, TransportError, runtime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::preface;
use super::reader::FrameReader;
use super::writer::{self, Frame};
use crate::guard::disconnect::Disconnect;
use crate::guard::stream::{self, Stream};
use crate::guard::{Guard, ending};
use crate::wire::{Dialled, Link, MAX_UNMATCHED};

/// The task yields after a payload of this size, so that its receiver and the sender of requests can run.
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
    /// Performs the handshake, and starts the transfer of messages until `kill` is cancelled.
    pub(super) async fn establish(dialled: Dialled) -> Result<Arc<Self>, Disconnect> {
        let Dialled { guard, metrics, mut stream, endpoint, activity, kill } = dialled;
        preface::exchange(&mut stream).await?;
        let (requests, queue) = mpsc::channel(guard.settings.in_flight);
        let link = Arc::new(Self { calls: Calls::new(), requests, kill });
        runtime::spawn(Arc::clone(&link).run(guard, metrics, endpoint, stream, activity, queue));
        Ok(link)
    }

    async fn run(
        self: Arc<Self>,
        guard: Arc<Guard>,
        metrics: Arc<TransportMetrics>,
        endpoint: Endpoint,
        mut stream: Stream,
        activity: Activity,
        mut queue: mpsc::Receiver<Frame<()>>,
    ) {
        let open = metrics.outbound.enter();
        let reason = {
            let settings = &guard.settings;
            let (from, mut to) = stream::split(&mut stream, &metrics);
            // Sent bytes count for the idle timeout, but not for the silence of the remote.
            let traffic = Activity::default();
            let never = CancellationToken::new();
            let outbound = writer::send_queued(&mut queue, &mut to, &traffic, settings.stall_timeout, &never);
            let inbound = self.replies(&guard, FrameReader::new(from, activity));
            tokio::select! {
                biased;
                () = self.kill.cancelled() => Disconnect::Local,
                // First, so that requests are sent before more replies are read.
                ended = outbound => ended.err().unwrap_or(Disconnect::Local),
                ended = inbound => ended.err().unwrap_or(Disconnect::Closed),
                () = ending::retire(&traffic, settings.idle_timeout, &self.calls) => Disconnect::IdleTimeout,
            }
        };
        drop((stream, open));
        guard.log.record(&metrics, &endpoint, &reason);
        self.calls.fail(|| TransportError::Lost { endpoint: endpoint.clone() });
        self.kill.cancel();
    }

    /// Delivers replies to their calls until the remote closes the connection.
    async fn replies<R: tokio::io::AsyncRead + Unpin>(
        &self,
        guard: &Guard,
        mut reader: FrameReader<R>,
    ) -> Result<(), Disconnect> {
        while let Some(lengths) = reader.next(&guard.settings).await? {
            let header = reader.header(lengths.header).await?;
            let id = envelope::id_of(&header);
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
            if self.calls.deliver_to(id, Message { header, payload }) > MAX_UNMATCHED {
                return Err(Disconnect::Protocol("too many replies without a request"));
            }
            if lengths.payload >= LARGE {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}
