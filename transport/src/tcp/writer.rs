//! Puts frames on a stream, all that are ready with one call to the system, from where their parts are.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::Message;
use enjambre_core::transport::calls::Activity;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reader::{Lengths, PREFIX};
use crate::guard::cutoff::CutOff;

/// The most frames that are taken from the queue at a time.
const FRAMES: usize = 64;
/// Prefix, header and payload.
const PARTS: usize = 3;
/// Who takes less than this in the time that is allowed is cut off.
const LEAST: usize = 256 * 1024;

/// A message to be sent, with what is dropped once it has left.
#[derive(Debug)]
pub(super) struct Frame<H> {
    prefix: [u8; PREFIX],
    header: Bytes,
    payload: Bytes,
    _held: H,
}

impl<H> Frame<H> {
    pub(super) fn new(message: Message, held: H) -> Self {
        let Message { header, payload } = message;
        Self { prefix: Lengths::encode(header.len(), payload.len()), header, payload, _held: held }
    }

    fn parts(&self) -> [&[u8]; PARTS] {
        [&self.prefix, &self.header, &self.payload]
    }

    fn len(&self) -> usize {
        PREFIX + self.header.len() + self.payload.len()
    }
}

/// Frames that were begun or are next.
struct Batch<H> {
    frames: Vec<Frame<H>>,
    /// How many bytes of the first have left.
    sent: usize,
}

impl<H> Batch<H> {
    fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        to: &mut W,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); FRAMES * PARTS];
        let mut used = 0;
        let mut skip = self.sent;
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

    /// So many bytes have left; drops the frames that have left with them.
    fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        let mut done = 0;
        while let Some(frame) = self.frames.get(done)
            && self.sent >= frame.len()
        {
            self.sent -= frame.len();
            done += 1;
        }
        self.frames.drain(..done);
    }
}

/// Sends what is queued, in its order, until `close` is cancelled and all of it has left, or the queue is closed.
pub(super) async fn send_queued<W: AsyncWrite + Unpin, H>(
    queue: &mut mpsc::Receiver<Frame<H>>,
    to: &mut W,
    traffic: &Activity,
    stalled: Duration,
    close: &CancellationToken,
) -> Result<(), CutOff> {
    let mut batch = Batch { frames: Vec::with_capacity(FRAMES), sent: 0 };
    loop {
        let received = tokio::select! {
            biased;
            received = queue.recv_many(&mut batch.frames, FRAMES) => received,
            () = close.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        if received == 0 {
            return Ok(());
        }
        let mut taken = 0;
        let mut until = Instant::now() + stalled;
        while !batch.frames.is_empty() {
            let write = poll_fn(|context| batch.poll_write(to, context));
            let written = match tokio::time::timeout_at(until, write).await {
                Ok(written) => written?,
                Err(_) => return Err(CutOff::Stalled),
            };
            if written == 0 {
                return Err(CutOff::Closed);
            }
            traffic.heard();
            batch.advance(written);
            taken += written;
            if taken >= LEAST {
                taken = 0;
                until = Instant::now() + stalled;
            }
            while batch.frames.len() < FRAMES
                && let Ok(frame) = queue.try_recv()
            {
                batch.frames.push(frame);
            }
        }
        match tokio::time::timeout_at(until, to.flush()).await {
            Ok(flushed) => flushed?,
            Err(_) => return Err(CutOff::Stalled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    const STALLED: Duration = Duration::from_secs(30);
    const PIECE: usize = 4 << 20;

    /// A piece to somebody who takes so much of it each second.
    async fn taken_at(rate: usize) -> Result<(), CutOff> {
        let (mut here, mut there) = duplex(64 * 1024);
        let (to, mut queue) = mpsc::channel(1);
        let message = Message { header: Bytes::new(), payload: vec![7; PIECE].into() };
        to.try_send(Frame::new(message, ())).unwrap();
        drop(to);
        let (traffic, close) = (Activity::default(), CancellationToken::new());
        let taking = async {
            let mut part = vec![0; rate];
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                there.read_exact(&mut part).await.unwrap();
            }
        };
        tokio::select! {
            sent = send_queued(&mut queue, &mut here, &traffic, STALLED, &close) => sent,
            () = taking => Ok(()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_a_thin_line_is_sent_a_piece_and_who_takes_next_to_nothing_is_not() {
        let readers = (0..40).map(|_| taken_at(40 * 1024));
        assert!(futures::future::join_all(readers).await.iter().all(Result::is_ok));
        assert!(matches!(taken_at(4 * 1024).await, Err(CutOff::Stalled)));
    }
}
