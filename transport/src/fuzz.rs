//! The fuzz targets of this crate: what strangers send before anybody knows them, by name. Each is beside the decoders that
//! it is about. See `tests/fuzz/README.md`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use enjambre_fuzz::Target;
use enjambre_fuzz::form::Form;
use enjambre_fuzz::items::Layout;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guard::ending::HangUp;
use crate::{guard, tcp};

/// The lengths of a header and a payload, and both, again and again.
const FRAMES: Layout = Layout { before: 0, lengths: &[4, 4], rest: false };

/// All targets.
const TARGETS: &[Target] = &[
    Target::new("zmtp-greeting", Form::Zmtp(64), guard::fuzz::greeting),
    Target::new("zmtp-requests", Form::Zmtp(0), guard::fuzz::requests),
    Target::new("zmtp-replies", Form::Zmtp(0), guard::fuzz::replies),
    Target::new("tcp-preface", Form::Bytes, tcp::fuzz::preface),
    Target::new("tcp-frames", Form::Items(FRAMES), tcp::fuzz::frames),
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
