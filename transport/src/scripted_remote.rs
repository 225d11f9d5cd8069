//! A remote for fuzz targets that sends prepared bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guard::ending::HangUp;

/// Sends these bytes in chunks, then ends. Records the bytes that it receives.
#[derive(Debug)]
pub(crate) struct ScriptedRemote<'a> {
    pub(crate) sends: &'a [u8],
    pub(crate) chunk: usize,
    pub(crate) received: Vec<u8>,
}

impl<'a> ScriptedRemote<'a> {
    pub(crate) const fn new(sends: &'a [u8], chunk: usize) -> Self {
        Self { sends, chunk, received: Vec::new() }
    }
}

impl AsyncRead for ScriptedRemote<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.sends.split_at(self.sends.len().min(self.chunk).min(into.remaining()));
        into.put_slice(now);
        self.sends = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ScriptedRemote<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.received.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl HangUp for ScriptedRemote<'_> {
    async fn hung_up(&self) {
        std::future::pending::<()>().await;
    }
}
