//! The framing: length of the header (4 bytes), length of the payload (4 bytes), header, payload.

use std::io::{Error, ErrorKind, Result};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use enjambre_core::{Activity, Message, MessageLimits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The lengths of header and payload.
pub(crate) type Lengths = (usize, usize);

/// Reads the lengths of the next frame and checks them before any memory is allocated.
pub(crate) async fn read_lengths(
    from: &mut (impl AsyncRead + Unpin),
    limits: &MessageLimits,
) -> Result<Lengths> {
    let mut prefix = [0; 8];
    from.read_exact(&mut prefix).await?;
    let mut prefix = &prefix[..];
    let (header, payload) = (prefix.get_u32() as usize, prefix.get_u32() as usize);
    if header > limits.header || payload > limits.payload {
        return Err(Error::new(ErrorKind::InvalidData, "the frame exceeds the message limits"));
    }
    Ok((header, payload))
}

/// Reads `length` bytes and reports every received part to `activity`.
pub(crate) async fn read_bytes(
    from: &mut (impl AsyncRead + Unpin),
    length: usize,
    activity: &Activity,
) -> Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(length).limit(length);
    while bytes.has_remaining_mut() {
        if from.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        activity.record();
    }
    Ok(bytes.into_inner().freeze())
}

/// Reads and discards `length` bytes.
pub(crate) async fn skip(from: &mut (impl AsyncRead + Unpin), length: usize) -> Result<()> {
    tokio::io::copy(&mut from.take(length as u64), &mut tokio::io::sink()).await.map(drop)
}

/// Writes a frame. The payload is not copied.
pub(crate) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &Message) -> Result<()> {
    let Message { header, payload } = message;
    let mut start = Vec::with_capacity(8 + header.len());
    start.put_u32(header.len() as u32);
    start.put_u32(payload.len() as u32);
    start.put_slice(header);
    to.write_all(&start).await?;
    to.write_all(payload).await
}
