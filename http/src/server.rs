//! Accepts connections and limits what a client can do with them.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::middleware::{from_fn_with_state, map_request, map_response};
use enjambre_core::model::network::network_of;
use enjambre_core::runtime;
use enjambre_core::transport::metrics::{EndReason, TransportMetrics};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::io::{InspectReader, InspectWriter};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::access::{self, AccessRules};
use crate::problem::with_details;
use crate::timed_body::{STALL_TIMEOUT, TimedBody};

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 256;
/// Maximum number of connections per remote address.
const MAX_PER_ADDRESS: usize = 64;
/// Maximum duration of a TLS handshake, and of the header of a request after its first byte or the previous request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of the header of a request, in bytes.
const MAX_HEADER: usize = 16 * 1024;
/// Maximum number of fields in the header of a request.
const MAX_FIELDS: usize = 64;
/// The delay after a failed accept, for example without free file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The remote side of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Whether the connection comes from this machine.
    pub is_local: bool,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
}

/// A server that listens on one or more addresses.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    tls: Option<Arc<ServerConfig>>,
    metrics: Arc<TransportMetrics>,
}

impl Server {
    /// Binds the addresses. With `tls`, connections are encrypted. They are counted in `metrics`.
    ///
    /// # Errors
    /// The address that cannot be used, with the reason.
    pub async fn bind(
        addresses: &[SocketAddr],
        tls: Option<Arc<ServerConfig>>,
        metrics: Arc<TransportMetrics>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let mut listeners = Vec::new();
        for address in addresses {
            listeners.push(TcpListener::bind(address).await.map_err(|error| (*address, error))?);
        }
        Ok(Self { listeners, tls, metrics })
    }

    /// The bound addresses.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves requests that the rules allow until `stop` is cancelled. Then waits for the running requests; their
    /// connections are closed when the future is dropped.
    pub async fn serve(self, routes: Router, rules: Arc<AccessRules>, stop: CancellationToken) {
        let routes = routes
            .layer(map_request(async |request: Request<Body>| request.map(TimedBody::wrap)))
            .layer(map_response(with_details))
            .layer(from_fn_with_state(rules, access::check));
        let acceptor = self.tls.map(TlsAcceptor::from);
        let limits = Arc::new(Limits::default());
        let tasks = TaskTracker::new();
        let aborted = CancellationToken::new();
        let _abort = aborted.clone().drop_guard();
        let accepting = self.listeners.into_iter().map(|listener| {
            let (routes, acceptor, limits, tasks, stop, aborted, metrics) =
                (routes.clone(), acceptor.clone(), &limits, &tasks, &stop, &aborted, &self.metrics);
            async move {
                while let Some((stream, remote)) = stop.run_until_cancelled(accept(&listener)).await {
                    let Some(permit) = Limits::admit(limits, remote.ip()) else {
                        metrics.end(EndReason::TooManyConnections);
                        continue;
                    };
                    let (acceptor, routes, metrics) = (acceptor.clone(), routes.clone(), Arc::clone(metrics));
                    let (stop, aborted) = (stop.clone(), aborted.clone());
                    runtime::spawn_in(tasks, async move {
                        let _open = metrics.inbound.enter();
                        let connection = serve_connection(stream, remote, acceptor, routes, stop, &metrics);
                        let end = aborted.run_until_cancelled(connection).await;
                        metrics.end(end.unwrap_or(EndReason::Local));
                        drop(permit);
                    });
                }
            }
        });
        futures::future::join_all(accepting).await;
        tasks.close();
        tasks.wait().await;
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Serves a connection. Returns why it ended.
async fn serve_connection(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    routes: Router,
    stop: CancellationToken,
    metrics: &TransportMetrics,
) -> EndReason {
    // Bodies are sent in large parts.
    let _ = stream.set_nodelay(true);
    let client = Client { is_local: remote.ip().to_canonical().is_loopback(), encrypted: acceptor.is_some() };
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL_TIMEOUT));
    let served = match acceptor {
        None => serve_stream(stream, client, routes, stop, metrics).await,
        Some(acceptor) => match timeout(HEADER_TIMEOUT, acceptor.accept(Box::pin(stream))).await {
            Ok(Ok(stream)) => serve_stream(stream, client, routes, stop, metrics).await,
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "TLS handshake failed");
                return EndReason::Io;
            }
            Err(_) => {
                tracing::debug!(%remote, "TLS handshake timed out");
                return EndReason::HandshakeTimeout;
            }
        },
    };
    served.unwrap_or_else(|error| {
        tracing::debug!(%remote, %error, "HTTP connection failed");
        end_reason(&error)
    })
}

fn end_reason(error: &hyper::Error) -> EndReason {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut};
    match error.source().and_then(|source| source.downcast_ref()).map(io::Error::kind) {
        Some(TimedOut) => EndReason::WriteTimeout,
        Some(BrokenPipe | ConnectionReset) => EndReason::Remote,
        // A response that failed.
        _ if error.is_user() => EndReason::Local,
        _ if error.is_timeout() => EndReason::RequestTimeout,
        _ if error.is_incomplete_message() => EndReason::Remote,
        _ if error.is_parse_too_large() => EndReason::LimitExceeded,
        _ if error.is_parse() => EndReason::ProtocolViolation,
        _ => EndReason::Io,
    }
}

async fn serve_stream(
    stream: impl AsyncRead + AsyncWrite,
    client: Client,
    routes: Router,
    stop: CancellationToken,
    metrics: &TransportMetrics,
) -> hyper::Result<EndReason> {
    // Whether a part of the next request has arrived.
    let begun = &AtomicBool::new(false);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(client));
        let span = tracing::info_span!(
            "http_request",
            method = request.method().as_str(),
            path = request.uri().path(),
            status = Empty
        );
        let response = routes.clone().call(request);
        async move {
            let response = response.await;
            begun.store(false, Ordering::Relaxed);
            if let Ok(response) = &response {
                Span::current().record("status", response.status().as_u16());
            }
            response
        }
        .instrument(span)
    });
    let stream = InspectWriter::new(stream, |sent: &[u8]| metrics.sent.add(sent.len() as u64));
    let stream = InspectReader::new(stream, |received: &[u8]| {
        metrics.received.add(received.len() as u64);
        begun.fetch_or(!received.is_empty(), Ordering::Relaxed);
    });
    let stream = std::pin::pin!(stream);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_FIELDS)
        .max_buf_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let end = tokio::select! {
        result = &mut connection => result.map(|()| EndReason::Remote),
        () = stop.cancelled() => {
            // Completes the running request.
            connection.as_mut().graceful_shutdown();
            connection.await.map(|()| EndReason::Local)
        }
    };
    match end {
        Err(error) if error.is_timeout() && !begun.load(Ordering::Relaxed) => Ok(EndReason::Idle),
        end => end,
    }
}

/// The numbers of connections.
#[derive(Debug)]
struct Limits {
    total: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: Arc::new(Semaphore::new(MAX_CONNECTIONS)), by_address: Mutex::default() }
    }
}

impl Limits {
    /// Counts a connection until the permit is dropped. Returns `None` if there are too many.
    fn admit(limits: &Arc<Self>, address: IpAddr) -> Option<Permit> {
        let total = Arc::clone(&limits.total).try_acquire_owned().ok()?;
        let address = network_of(address);
        let mut by_address = limits.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Permit { limits: Arc::clone(limits), address, _total: total })
    }
}

struct Permit {
    limits: Arc<Limits>,
    address: IpAddr,
    _total: OwnedSemaphorePermit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_address = self.limits.by_address.lock();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn start(routes: Router) -> (SocketAddr, CancellationToken) {
        start_measured(routes, Arc::default()).await
    }

    async fn start_measured(
        routes: Router,
        metrics: Arc<TransportMetrics>,
    ) -> (SocketAddr, CancellationToken) {
        let server = Server::bind(&["127.0.0.1:0".parse().unwrap()], None, metrics).await.unwrap();
        let (address, stop) = (server.addresses()[0], CancellationToken::new());
        tokio::spawn(server.serve(routes, Arc::new(AccessRules::new("", [])), stop.clone()));
        (address, stop)
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_sends_no_request_is_disconnected() {
        let (address, _stop) = start(Router::new()).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).await.unwrap();
        slow.read_to_end(&mut rest).await.unwrap();
    }

    #[tokio::test]
    async fn client_that_reads_nothing_is_disconnected() {
        let dropped = Arc::new(());
        let held = Arc::downgrade(&dropped);
        let endless = move || {
            let dropped = Arc::clone(&dropped);
            let parts = futures::stream::repeat_with(move || {
                let _ = &dropped;
                Ok::<_, io::Error>(bytes::Bytes::from_static(&[0; 65536]))
            });
            async { axum::body::Body::from_stream(parts) }
        };
        let (address, _stop) = start(Router::new().route("/", get(endless))).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        client.read_exact(&mut [0; 16]).await.unwrap();
        tokio::time::pause();
        // One copy is held by the route.
        while held.strong_count() > 1 {
            tokio::time::sleep(STALL_TIMEOUT / 4).await;
        }
    }

    #[tokio::test]
    async fn client_that_stops_sending_its_body_is_disconnected() {
        let (entered, entering) = tokio::sync::oneshot::channel();
        let entered = Arc::new(Mutex::new(Some(entered)));
        let route = move |body: axum::body::Body| async move {
            if let Some(entered) = entered.lock().take() {
                let _ = entered.send(());
            }
            let received = axum::body::to_bytes(body, usize::MAX).await;
            received.map_err(|error| format!("{error:?}"))
        };
        let (address, _stop) = start(Router::new().route("/", post(route))).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\npart";
        client.write_all(request).await.unwrap();
        entering.await.unwrap();
        tokio::time::pause();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        assert!(reply.contains("Stalled"), "{reply}");
    }

    #[tokio::test]
    async fn connections_per_address_are_limited() {
        let (address, _stop) = start(Router::new().route("/", get(async || ""))).await;
        let mut held = Vec::new();
        for _ in 0..MAX_PER_ADDRESS {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            client.read_exact(&mut [0; 16]).await.unwrap();
            held.push(client);
        }
        let mut refused = TcpStream::connect(address).await.unwrap();
        let _ = refused.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(refused.read_exact(&mut [0; 16]).await.is_err());
        held.pop();
        loop {
            let mut client = TcpStream::connect(address).await.unwrap();
            let _ = client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            if client.read_exact(&mut [0; 16]).await.is_ok() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn connections_and_their_bytes_are_counted() {
        let metrics = Arc::new(TransportMetrics::default());
        let routes = Router::new().route("/", get(async || [7; 100_000]));
        let (address, _stop) = start_measured(routes, Arc::clone(&metrics)).await;
        for (request, end) in [
            (&b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"[..], EndReason::Remote),
            (b"nonsense\r\n\r\n", EndReason::ProtocolViolation),
        ] {
            let (received, sent) = (metrics.received.get(), metrics.sent.get());
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(request).await.unwrap();
            let mut reply = Vec::new();
            client.read_to_end(&mut reply).await.unwrap();
            while metrics.inbound.get() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(metrics.received.get() - received, request.len() as u64);
            assert_eq!(metrics.sent.get() - sent, reply.len() as u64);
            assert_eq!(metrics.ended(end), 1);
        }
    }

    #[tokio::test]
    async fn long_header_is_refused() {
        let (address, _stop) = start(Router::new()).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(2 * MAX_HEADER));
        let _ = client.write_all(request.as_bytes()).await;
        let mut reply = Vec::new();
        let _ = client.read_to_end(&mut reply).await;
        assert!(
            reply.is_empty() || reply.starts_with(b"HTTP/1.1 431"),
            "{}",
            String::from_utf8_lossy(&reply)
        );
    }

    #[tokio::test]
    async fn running_request_is_completed_at_shutdown() {
        let (entered, entering) = tokio::sync::oneshot::channel();
        let entered = Arc::new(Mutex::new(Some(entered)));
        let stop_seen = CancellationToken::new();
        let route = {
            let stop_seen = stop_seen.clone();
            move || async move {
                if let Some(entered) = entered.lock().take() {
                    let _ = entered.send(());
                }
                stop_seen.cancelled().await;
                "done"
            }
        };
        let (address, stop) = start(Router::new().route("/", get(route))).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        entering.await.unwrap();
        stop.cancel();
        stop_seen.cancel();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        assert!(reply.ends_with("done"), "{reply}");
    }
}
