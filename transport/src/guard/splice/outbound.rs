//! The loop from the `zeromq` crate to the remote.

use std::time::Duration;

use bytes::{Buf, Bytes};
use enjambre_core::Activity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::buffer::{Buffer, write};
use crate::guard::disconnect::Disconnect;
use crate::guard::frame::{Direction, FrameParser, Step, last_header};

/// The number of payload bytes that a remote must read within the write timeout.
const MIN_PROGRESS: usize = 256 * 1024;

/// Provides the payloads, and observes the messages to a remote.
pub(crate) trait Outbound: Send + Sync {
    /// Returns the payload for a message that ends with an empty frame. `messages` is the number of messages sent before it
    /// and not reported by [`Outbound::sent`] yet.
    fn payload(&self, messages: usize) -> Option<Bytes>;
    /// Called after the oldest messages were sent.
    fn sent(&self, messages: usize);
}

/// Requests, which have no payloads and are not counted.
impl Outbound for () {
    fn payload(&self, _messages: usize) -> Option<Bytes> {
        None
    }

    fn sent(&self, _messages: usize) {}
}

/// Forwards messages and inserts their payloads.
pub(crate) async fn outbound<R, W>(
    from: &mut R,
    to: &mut W,
    outbound: &impl Outbound,
    activity: &Activity,
    pongs: &mut mpsc::Receiver<Vec<u8>>,
    timeout: Duration,
) -> Result<(), Disconnect>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut parser = FrameParser::new(Direction::Own);
    let mut buffer = Buffer::new();
    loop {
        let between_messages = parser.at_boundary() && buffer.filled == 0;
        let read = tokio::select! {
            read = buffer.fill(from) => read?,
            Some(pong) = pongs.recv(), if between_messages => {
                write(to, &pong[..], timeout).await?;
                continue;
            }
        };
        if read == 0 {
            return Err(Disconnect::Local);
        }
        // Bytes before `start` are done.
        let (mut start, mut at, mut messages, mut boundary) = (0, 0, 0, None);
        loop {
            match parser.step(&buffer.bytes[at..buffer.filled])? {
                Step::Incomplete { .. } => break,
                Step::Frame { header, body, opens, more, .. } => {
                    let may_be_payload = body == 0 && !opens && !more;
                    let payload = if may_be_payload { outbound.payload(messages) } else { None };
                    if let Some(payload) = payload {
                        write_payload(to, &buffer.bytes[start..at], &payload, timeout, activity).await?;
                        at += header;
                        parser.skip_body();
                        // Reported before the next payload, which can be large. A PONG does not wait for it, either.
                        outbound.sent(std::mem::take(&mut messages) + 1);
                        if let Ok(pong) = pongs.try_recv() {
                            write(to, &pong[..], timeout).await?;
                        }
                        (start, boundary) = (at, None);
                    } else {
                        at += header;
                    }
                }
                Step::Body { bytes, closes, .. } => {
                    at += bytes;
                    if closes {
                        messages += 1;
                        boundary = Some(at);
                    }
                }
                // The crate sends no command after READY.
                Step::Command { .. } => {
                    return Err(Disconnect::Protocol("the private socket sent a command"));
                }
            }
        }
        if let Some(boundary) = boundary
            && let Ok(pong) = pongs.try_recv()
        {
            write(to, &buffer.bytes[start..boundary], timeout).await?;
            write(to, &pong[..], timeout).await?;
            start = boundary;
        }
        write(to, &buffer.bytes[start..at], timeout).await?;
        activity.record();
        outbound.sent(messages);
        buffer.consume(at);
    }
}

/// Writes the preceding bytes, and the payload as the last frame of its message.
async fn write_payload<W: AsyncWrite + Unpin>(
    to: &mut W,
    before: &[u8],
    payload: &Bytes,
    timeout: Duration,
    activity: &Activity,
) -> Result<(), Disconnect> {
    let header = last_header(payload.len());
    let (first, rest) = payload.split_at(payload.len().min(MIN_PROGRESS));
    write(to, Buf::chain(before, &header[..]).chain(first), timeout).await?;
    for part in rest.chunks(MIN_PROGRESS) {
        activity.record();
        write(to, part, timeout).await?;
    }
    Ok(())
}
