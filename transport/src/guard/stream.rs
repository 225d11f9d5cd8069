//! A stream to a remote: TCP, or TLS over TCP.
//!
//! One task uses both halves. The halves of a TLS stream share its state behind an uncontended lock.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use enjambre_core::PeerId;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp;
use tokio_rustls::TlsStream;

use super::ending::{self, HangUp};

/// The size of a read from the socket of a TLS stream. TLS itself reads 4 KiB.
const BUFFER: usize = 32 * 1024;

/// A stream to a remote.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Secure(Box<Secured>),
}

/// An encrypted stream to an authenticated remote.
#[derive(Debug)]
pub(crate) struct Secured {
    pub(super) tls: TlsStream<Socket>,
    pub(super) socket: Arc<TcpStream>,
    pub(super) peer: PeerId,
}

impl Stream {
    /// The authenticated id of the remote.
    pub(crate) fn identity(&self) -> Option<PeerId> {
        match self {
            Self::Plain(_) => None,
            Self::Secure(secured) => Some(secured.peer),
        }
    }

    /// Splits the stream into its directions.
    pub(crate) fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        match self {
            Self::Plain(stream) => {
                let (read, write) = stream.split();
                (ReadHalf::Plain(read), WriteHalf::Plain(write))
            }
            Self::Secure(secured) => {
                let Secured { tls, socket, .. } = &mut **secured;
                let (read, write) = tokio::io::split(tls);
                (ReadHalf::Secure(read, socket), WriteHalf::Secure(write))
            }
        }
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(crate) enum ReadHalf<'a> {
    Plain(tcp::ReadHalf<'a>),
    Secure(tokio::io::ReadHalf<&'a mut TlsStream<Socket>>, &'a TcpStream),
}

/// The sending half of a stream. Written bytes are sent by `flush` at the latest.
#[derive(Debug)]
pub(crate) enum WriteHalf<'a> {
    Plain(tcp::WriteHalf<'a>),
    Secure(tokio::io::WriteHalf<&'a mut TlsStream<Socket>>),
}

impl HangUp for ReadHalf<'_> {
    async fn hung_up(&self) {
        match self {
            Self::Plain(read) => ending::hung_up(read.as_ref()).await,
            Self::Secure(_, socket) => ending::hung_up(socket).await,
        }
    }
}

macro_rules! delegate_read {
    ($type:ty, $secure:pat => $inner:expr) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(plain) => Pin::new(plain).poll_read(context, buffer),
                    $secure => Pin::new($inner).poll_read(context, buffer),
                }
            }
        }
    };
}

macro_rules! delegate_write {
    ($type:ty, $secure:pat => $inner:expr) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(plain) => Pin::new(plain).poll_write(context, bytes),
                    $secure => Pin::new($inner).poll_write(context, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                parts: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(plain) => Pin::new(plain).poll_write_vectored(context, parts),
                    $secure => Pin::new($inner).poll_write_vectored(context, parts),
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(plain) => Pin::new(plain).poll_flush(context),
                    $secure => Pin::new($inner).poll_flush(context),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(plain) => Pin::new(plain).poll_shutdown(context),
                    $secure => Pin::new($inner).poll_shutdown(context),
                }
            }
        }
    };
}

delegate_read!(Stream, Self::Secure(secured) => &mut secured.tls);
delegate_write!(Stream, Self::Secure(secured) => &mut secured.tls);
delegate_read!(ReadHalf<'_>, Self::Secure(read, _) => read);
delegate_write!(WriteHalf<'_>, Self::Secure(write) => write);

/// The socket of a TLS stream. It is shared with [`ReadHalf`], which detects the end of the stream. The read buffer exists
/// only while it contains bytes.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    buffer: Vec<u8>,
    begin: usize,
}

impl Socket {
    pub(super) const fn new(stream: Arc<TcpStream>) -> Self {
        Self { stream, buffer: Vec::new(), begin: 0 }
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
