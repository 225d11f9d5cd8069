//! The read buffer of a loop, and writing with a timeout.

use std::time::Duration;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::guard::disconnect::Disconnect;

/// The size of the read buffer, larger than the largest command. Payloads do not use it.
pub(crate) const BUFFER: usize = 32 * 1024;

/// Bytes that were read and not forwarded yet.
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
    pub(super) filled: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; BUFFER], filled: 0 }
    }

    pub(super) async fn fill<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<usize, Disconnect> {
        let read = from.read(&mut self.bytes[self.filled..]).await?;
        self.filled += read;
        Ok(read)
    }

    /// Removes the first `done` bytes. The rest is short: the start of a frame header or of a command.
    pub(super) fn consume(&mut self, done: usize) {
        self.bytes.copy_within(done..self.filled, 0);
        self.filled -= done;
    }
}

/// Writes all bytes within the timeout. Without it, a remote that reads single bytes would hold its reply budget forever.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    mut bytes: impl Buf,
    timeout: Duration,
) -> Result<(), Disconnect> {
    if !bytes.has_remaining() {
        return Ok(());
    }
    let written = async {
        to.write_all_buf(&mut bytes).await?;
        to.flush().await
    };
    Ok(tokio::time::timeout(timeout, written).await.map_err(|_| Disconnect::WriteTimeout)??)
}
