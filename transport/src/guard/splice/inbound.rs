//! The loop from the remote to the `zeromq` crate.

use std::time::Duration;

use bytes::{Buf, Bytes};
use enjambre_core::Activity;
use enjambre_core::runtime::buffers::BufferPool;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::mpsc;

use super::buffer::{Buffer, write};
use crate::guard::disconnect::Disconnect;
use crate::guard::ending::HangUp;
use crate::guard::frame::{Content, Direction, FrameParser, Step, empty_frame};
use crate::guard::gate::RequestGate;
use crate::guard::handshake;

/// Controls and observes the messages from a remote.
pub(crate) trait Inbound: Send + Sync {
    /// The gate that messages must pass; `None` if there is no limit.
    fn gate(&self) -> Option<&RequestGate> {
        None
    }

    /// The destination of payloads; `None` if messages have none.
    fn payloads(&self) -> Option<&Payloads> {
        None
    }

    /// Called before bytes are forwarded that complete this number of messages.
    fn passed(&self, _messages: u64) {}
}

/// The destination of payloads, which bypass the crate.
#[derive(Debug)]
pub(crate) struct Payloads {
    /// Provides the buffers of payloads.
    pub(crate) pool: BufferPool,
    /// Receives the payload of each message with more than one frame, in order.
    pub(crate) to: mpsc::Sender<Bytes>,
}

/// Forwards messages until the remote closes the connection or violates the protocol.
pub(crate) async fn inbound<R, W>(
    from: &mut R,
    to: &mut W,
    direction: Direction,
    inbound: &impl Inbound,
    activity: &Activity,
    pongs: &mpsc::Sender<Vec<u8>>,
    timeout: Duration,
) -> Result<(), Disconnect>
where
    R: AsyncRead + HangUp + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut parser = FrameParser::new(direction);
    let mut buffer = Buffer::new();
    loop {
        if buffer.fill(from).await? == 0 {
            let complete = parser.at_boundary() && buffer.filled == 0;
            return if complete { Ok(()) } else { Err(Disconnect::Closed) };
        }
        activity.record();
        // Bytes before `run` are done. Bytes from `run` to `at` will be forwarded unchanged.
        let (mut run, mut at, mut messages) = (0, 0, 0);
        loop {
            let bytes = &buffer.bytes[..buffer.filled];
            match parser.step(&bytes[at..])? {
                Step::Incomplete { .. } => break,
                Step::Frame { header, body, opens, more, content } => {
                    let is_forwarded = content == Content::Forwarded;
                    let admitted = if is_forwarded { u32::try_from(body).unwrap_or(u32::MAX) } else { 0 };
                    if let Some(gate) = inbound.gate()
                        && !gate.try_enter(opens, admitted)
                    {
                        // The replies to the messages before this one free the slot that it waits for.
                        inbound.passed(std::mem::take(&mut messages));
                        write(to, &bytes[run..at], timeout).await?;
                        run = at;
                        gate.set_arriving(false);
                        tokio::select! {
                            biased;
                            () = from.hung_up() => return Err(Disconnect::Closed),
                            () = gate.enter(opens, admitted) => {}
                        }
                    }
                    if let Some(gate) = inbound.gate() {
                        gate.set_arriving(true);
                    }
                    if !is_forwarded {
                        inbound.passed(std::mem::take(&mut messages));
                        let empty = empty_frame(more);
                        write(to, Buf::chain(&bytes[run..at], &empty[..]), timeout).await?;
                        run = at + header;
                    }
                    at += header;
                    if content == Content::Payload
                        && let Some(payloads) = inbound.payloads()
                    {
                        let payload = payload(from, &bytes[at..], body, &payloads.pool, activity).await?;
                        at += payload.len().min(bytes.len() - at);
                        run = at;
                        messages += u64::from(parser.skip_body());
                        inbound.passed(std::mem::take(&mut messages));
                        // The receiver already has the preceding frames.
                        payloads.to.send(payload).await.map_err(|_| Disconnect::Local)?;
                    }
                }
                Step::Body { bytes: length, closes, content } => {
                    at += length;
                    if content != Content::Forwarded {
                        run = at;
                    }
                    messages += u64::from(closes);
                    if closes && let Some(gate) = inbound.gate() {
                        gate.set_arriving(false);
                    }
                }
                Step::Command { bytes: length, body } => {
                    inbound.passed(std::mem::take(&mut messages));
                    write(to, &bytes[run..at], timeout).await?;
                    if let Some(pong) = handshake::answer(&bytes[at..][body]) {
                        // Fails if the queue is full.
                        let _ = pongs.try_send(pong);
                    }
                    at += length;
                    run = at;
                }
            }
        }
        // Counted before the messages can be received, so that the receiver does not stop too early.
        inbound.passed(messages);
        write(to, &buffer.bytes[run..at], timeout).await?;
        buffer.consume(at);
    }
}

/// Reads a payload that starts with `start` and continues in the stream. Its length is within the limit.
async fn payload<R: AsyncRead + Unpin>(
    from: &mut R,
    start: &[u8],
    length: u64,
    pool: &BufferPool,
    activity: &Activity,
) -> Result<Bytes, Disconnect> {
    let mut payload = pool.take(usize::try_from(length).unwrap_or(usize::MAX));
    let mut filled = start.len().min(payload.len());
    payload[..filled].copy_from_slice(&start[..filled]);
    while filled < payload.len() {
        let read = from.read(&mut payload[filled..]).await?;
        if read == 0 {
            return Err(Disconnect::Closed);
        }
        activity.record();
        filled += read;
    }
    Ok(payload.freeze())
}
