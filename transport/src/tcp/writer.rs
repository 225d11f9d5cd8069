//! Writes queued frames with vectored writes, without copying their parts.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::{Activity, Message};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::reader::{Lengths, PREFIX};
use crate::guard::disconnect::Disconnect;

/// Maximum number of frames in a batch.
const MAX_FRAMES: usize = 64;
/// Prefix, header and payload.
const PARTS: usize = 3;
/// The number of bytes that the remote must read within the write timeout.
const MIN_PROGRESS: usize = 256 * 1024;

/// An encoded message, and a guard that is dropped after it is sent.
#[derive(Debug)]
pub(super) struct Frame<G> {
    prefix: [u8; PREFIX],
    header: Bytes,
    payload: Bytes,
    _guard: G,
}

impl<G> Frame<G> {
    pub(super) fn new(message: Message, guard: G) -> Self {
        let Message { header, payload } = message;
        Self { prefix: Lengths::encode(header.len(), payload.len()), header, payload, _guard: guard }
    }

    fn parts(&self) -> [&[u8]; PARTS] {
        [&self.prefix, &self.header, &self.payload]
    }

    fn len(&self) -> usize {
        PREFIX + self.header.len() + self.payload.len()
    }
}

/// The frames that are being written.
struct Batch<G> {
    frames: Vec<Frame<G>>,
    /// The number of written bytes of the first frame.
    written: usize,
}

impl<G> Batch<G> {
    fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        to: &mut W,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_FRAMES * PARTS];
        let mut used = 0;
        let mut skip = self.written;
        for part in self.frames.iter().flat_map(Frame::parts) {
            if skip >= part.len() {
                skip -= part.len();
            } else {
                slices[used] = IoSlice::new(&part[skip..]);
                used += 1;
                skip = 0;
            }
        }
        Pin::new(to).poll_write_vectored(context, &slices[..used])
    }

    /// Records written bytes, and drops the frames that are complete.
    fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        let mut done = 0;
        while let Some(frame) = self.frames.get(done)
            && self.written >= frame.len()
        {
            self.written -= frame.len();
            done += 1;
        }
        self.frames.drain(..done);
    }
}

/// Sends the queued frames until the queue is closed, or until `close` is cancelled and the queue is empty.
pub(super) async fn send_queued<W: AsyncWrite + Unpin, G>(
    queue: &mut mpsc::Receiver<Frame<G>>,
    to: &mut W,
    traffic: &Activity,
    timeout: Duration,
    close: &CancellationToken,
) -> Result<(), Disconnect> {
    let mut batch = Batch { frames: Vec::with_capacity(MAX_FRAMES), written: 0 };
    loop {
        let received = tokio::select! {
            biased;
            received = queue.recv_many(&mut batch.frames, MAX_FRAMES) => received,
            () = close.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        if received == 0 {
            return Ok(());
        }
        let mut progress = 0;
        let mut deadline = Instant::now() + timeout;
        while !batch.frames.is_empty() {
            let write = poll_fn(|context| batch.poll_write(to, context));
            let written = timeout_at(deadline, write).await.map_err(|_| Disconnect::WriteTimeout)??;
            if written == 0 {
                return Err(Disconnect::Closed);
            }
            traffic.record();
            batch.advance(written);
            progress += written;
            if progress >= MIN_PROGRESS {
                progress = 0;
                deadline = Instant::now() + timeout;
            }
            while batch.frames.len() < MAX_FRAMES
                && let Ok(frame) = queue.try_recv()
            {
                batch.frames.push(frame);
            }
        }
        timeout_at(deadline, to.flush()).await.map_err(|_| Disconnect::WriteTimeout)??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    const TIMEOUT: Duration = Duration::from_secs(30);
    const PIECE: usize = 4 << 20;

    /// Sends a piece to a remote that reads `rate` bytes per second.
    async fn send_at(rate: usize) -> Result<(), Disconnect> {
        let (mut local, mut remote) = duplex(64 * 1024);
        let (to, mut queue) = mpsc::channel(1);
        let message = Message { header: Bytes::new(), payload: vec![7; PIECE].into() };
        to.try_send(Frame::new(message, ())).unwrap();
        drop(to);
        let (traffic, close) = (Activity::default(), CancellationToken::new());
        let reading = async {
            let mut part = vec![0; rate];
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                remote.read_exact(&mut part).await.unwrap();
            }
        };
        tokio::select! {
            sent = send_queued(&mut queue, &mut local, &traffic, TIMEOUT, &close) => sent,
            () = reading => Ok(()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_gets_a_piece_and_stalled_reader_does_not() {
        let readers = (0..40).map(|_| send_at(40 * 1024));
        assert!(futures::future::join_all(readers).await.iter().all(Result::is_ok));
        assert!(matches!(send_at(4 * 1024).await, Err(Disconnect::WriteTimeout)));
    }
}
