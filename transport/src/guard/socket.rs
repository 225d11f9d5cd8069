//! Options of public sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use enjambre_core::Endpoint;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

/// The number of connections that wait to be accepted. Beyond it, a client waits at least a second.
const BACKLOG: u32 = 1024;

/// The time without traffic before the first keep-alive probe, and the interval of further probes.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Listens at the first address of the endpoint that is free. `[::]` receives connections over IPv6 and IPv4.
pub(crate) async fn listen(endpoint: &Endpoint) -> io::Result<TcpListener> {
    let mut failure = io::ErrorKind::AddrNotAvailable.into();
    for address in lookup_host((endpoint.host(), endpoint.port())).await? {
        match listen_at(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn listen_at(mut address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(v6) => match TcpSocket::new_v6() {
            Ok(socket) => {
                // The default depends on the system.
                SockRef::from(&socket).set_only_v6(!v6.ip().is_unspecified())?;
                socket
            }
            // The system has no IPv6.
            Err(_) if v6.ip().is_unspecified() => {
                address = (Ipv4Addr::UNSPECIFIED, v6.port()).into();
                TcpSocket::new_v4()?
            }
            Err(error) => return Err(error),
        },
    };
    // A restart does not wait for the end of old connections. On Windows the option has another meaning.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Sends small messages without delay, and detects a remote that has disappeared. `timeout` limits the time until sent data
/// is acknowledged.
pub(crate) fn configure(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    // The default of Linux is about 15 minutes.
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(
        stream,
        u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
    )?;
    #[cfg(not(target_os = "linux"))]
    let _ = timeout;
    Ok(())
}
