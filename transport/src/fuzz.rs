//! The fuzz targets of this crate: what strangers send before anybody knows them, by name. Each is beside the decoders that
//! it is about. See `tests/fuzz/README.md`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guard::ending::HangUp;
use crate::{guard, tcp};

/// All targets.
const TARGETS: &[enjambre_fuzz::Target] = &[
    ("zmtp-greeting", guard::fuzz::greeting),
    ("zmtp-requests", guard::fuzz::requests),
    ("zmtp-replies", guard::fuzz::replies),
    ("tcp-preface", tcp::fuzz::preface),
    ("tcp-frames", tcp::fuzz::frames),
];

/// A remote that says this, so many bytes at a time, and then ends; what is said to it is kept.
#[derive(Debug)]
pub(crate) struct Remote<'a> {
    pub(crate) says: &'a [u8],
    pub(crate) chunk: usize,
    pub(crate) hears: Vec<u8>,
}

impl<'a> Remote<'a> {
    pub(crate) const fn new(says: &'a [u8], chunk: usize) -> Self {
        Self { says, chunk, hears: Vec::new() }
    }
}

impl AsyncRead for Remote<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.says.split_at(self.says.len().min(self.chunk).min(into.remaining()));
        into.put_slice(now);
        self.says = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Remote<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.hears.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl HangUp for Remote<'_> {
    async fn hung_up(&self) {
        std::future::pending::<()>().await;
    }
}

#[test]
fn no_target_fails() {
    enjambre_fuzz::run(TARGETS);
}
