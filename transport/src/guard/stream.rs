//! A stream to a remote: TCP, or TLS over TCP.
//!
//! One task uses both halves, which count their bytes. The halves of a TLS stream share its state behind an uncontended
//! lock.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use enjambre_core::metrics::Counter;
use enjambre_core::transport::metrics::TransportMetrics;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp;
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

use super::ending::{self, HangUp};

/// The size of a read from the socket of a TLS stream. TLS itself reads 4 KiB.
const BUFFER: usize = 32 * 1024;

/// A stream to a remote, plain or encrypted.
pub(crate) type Stream = Either<TcpStream, Box<TlsStream<Socket>>>;

/// The sending half of a stream. Written bytes are sent by `flush` at the latest.
pub(crate) type WriteHalf<'a> =
    Counted<'a, Either<tcp::WriteHalf<'a>, tokio::io::WriteHalf<&'a mut TlsStream<Socket>>>>;

/// The receiving half of a stream.
pub(crate) type ReadHalf<'a> = Counted<'a, Either<tcp::ReadHalf<'a>, SecureReadHalf<'a>>>;

/// Splits a stream into its directions, whose bytes are counted.
pub(crate) fn split<'a>(
    stream: &'a mut Stream,
    metrics: &'a TransportMetrics,
) -> (ReadHalf<'a>, WriteHalf<'a>) {
    let (read, write) = match stream {
        Either::Left(plain) => {
            let (read, write) = plain.split();
            (Either::Left(read), Either::Left(write))
        }
        Either::Right(tls) => {
            let socket = Arc::clone(&tls.get_ref().0.stream);
            let (read, write) = tokio::io::split(&mut **tls);
            (Either::Right(SecureReadHalf { read, socket }), Either::Right(write))
        }
    };
    (Counted { half: read, bytes: &metrics.received }, Counted { half: write, bytes: &metrics.sent })
}

/// A half of a stream that counts its bytes.
#[derive(Debug)]
pub(crate) struct Counted<'a, S> {
    half: S,
    bytes: &'a Counter,
}

impl<S> Counted<'_, S> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.bytes.add(*bytes as u64);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.half).poll_read(context, into))?;
        self.bytes.add((into.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.half).poll_write(context, bytes);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.half).poll_write_vectored(context, parts);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.half.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(context)
    }
}

/// The receiving half of an encrypted stream.
#[derive(Debug)]
pub(crate) struct SecureReadHalf<'a> {
    read: tokio::io::ReadHalf<&'a mut TlsStream<Socket>>,
    socket: Arc<TcpStream>,
}

impl AsyncRead for SecureReadHalf<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(context, into)
    }
}

impl HangUp for Counted<'_, Either<tcp::ReadHalf<'_>, SecureReadHalf<'_>>> {
    async fn hung_up(&self) {
        match &self.half {
            Either::Left(plain) => ending::hung_up(plain.as_ref()).await,
            Either::Right(secure) => ending::hung_up(&secure.socket).await,
        }
    }
}

/// The socket of a TLS stream. It is shared with [`SecureReadHalf`], which detects the end of the stream. The read buffer exists
/// only while it contains bytes.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    buffer: Vec<u8>,
    begin: usize,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream: Arc::new(stream), buffer: Vec::new(), begin: 0 }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, buffer, begin } = self.get_mut();
        while buffer.len() == *begin {
            *begin = 0;
            buffer.clear();
            // Polling the readiness first consumes the cooperative budget of the task.
            if stream.poll_read_ready(context)?.is_pending() {
                *buffer = Vec::new();
                return Poll::Pending;
            }
            buffer.reserve_exact(BUFFER);
            match stream.try_read_buf(buffer) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let length = into.remaining().min(buffer.len() - *begin);
        into.put_slice(&buffer[*begin..*begin + length]);
        *begin += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_write_vectored(parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}
