//! Connections to the servers of the URL: name resolution, failover and session setup.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use enjambre_core::storage::inspect::with_causes;
use enjambre_core::storage::password::password;
use enjambre_core::{Place, StorageError, runtime};
use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::connection::{Canceller, Connection};
use crate::error::Failure;
use crate::settings::{PostgresSettings, TlsMode};
use crate::tls;

/// The idle time before keepalive probes. An unreachable peer is detected after twice this time.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The maximum number of addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// One server of the URL.
struct Server {
    name: String,
    config: Config,
    /// The name and port to resolve, if the URL does not contain the address.
    lookup: Option<(String, u16)>,
    /// The address of the last connection, which is tried first.
    preferred: Mutex<Option<IpAddr>>,
}

impl Server {
    /// Returns the addresses, the preferred one first. `None` means that the configuration contains the address.
    async fn addresses(&self) -> Result<Vec<Option<IpAddr>>, Failure> {
        let Some((name, port)) = &self.lookup else { return Ok(vec![None]) };
        let found = lookup_host((name.as_str(), *port)).await.map_err(Failure::Resolve)?;
        let mut addresses: Vec<Option<IpAddr>> = Vec::new();
        for address in found.map(|found| Some(found.ip())) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let preferred = *self.preferred.lock();
        addresses.sort_by_key(|address| *address != preferred);
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            return Err(Failure::Resolve(io::ErrorKind::NotFound.into()));
        }
        Ok(addresses)
    }
}

/// Connects to the server that accepts writes.
pub(crate) struct Servers {
    servers: Vec<Server>,
    /// The server of the last connection, which is tried first.
    preferred: AtomicUsize,
    tls: MakeRustlsConnect,
    connect_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    /// The database and its servers, for messages.
    pub(crate) description: String,
    /// The error of the last attempt, if no server was available.
    last_error: Mutex<Option<String>>,
    /// While no server is available, only one caller at a time tries to connect. Other callers fail at once.
    probe: Semaphore,
}

impl Servers {
    /// Reads the password and the certificates. Blocks.
    pub(crate) fn new(settings: &PostgresSettings, place: &Place) -> Result<Self, StorageError> {
        let (variable, file) = (settings.password_env.as_deref(), settings.password_file.as_deref());
        let password = password(variable, file, "PGPASSWORD", place)?;
        let server = |index| Server {
            name: settings.url.server(index),
            config: config_of(settings, index, password.as_deref()),
            lookup: settings.url.lookup(index),
            preferred: Mutex::default(),
        };
        let servers: Vec<Server> = (0..settings.url.servers()).map(server).collect();
        let encrypted = servers.iter().any(|server| server.config.get_ssl_mode() != SslMode::Disable);
        Ok(Self {
            servers,
            preferred: AtomicUsize::new(0),
            tls: MakeRustlsConnect::new(tls::tls_config(settings, place, encrypted)?),
            connect_timeout: settings.connect_timeout,
            statement_timeout: settings.timeout,
            description: settings.url.describe(),
            last_error: Mutex::default(),
            probe: Semaphore::new(1),
        })
    }

    /// Connects to the first server that accepts writes.
    pub(crate) async fn connect(&self) -> Result<Connection, StorageError> {
        let last_error = self.last_error.lock().clone();
        let _permit = match last_error {
            None => None,
            Some(reason) => match self.probe.try_acquire() {
                Ok(permit) => Some(permit),
                Err(_) => return Err(StorageError::Unavailable { reason }),
            },
        };
        let outcome = self.connect_to_any().await;
        *self.last_error.lock() = match &outcome {
            Err(StorageError::Unavailable { reason }) => Some(reason.clone()),
            _ => None,
        };
        outcome
    }

    async fn connect_to_any(&self) -> Result<Connection, StorageError> {
        let count = self.servers.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for index in (first..first + count).map(|index| index % count) {
            let server = &self.servers[index];
            match self.with_timeout(server.addresses()).await {
                Ok(addresses) => match self.connect_to(server, &addresses).await {
                    Ok(connection) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(connection);
                    }
                    Err(failed) => failures.extend(failed),
                },
                Err(failure) => failures.push((server.name.clone(), failure)),
            }
        }
        let mut temporary = Vec::new();
        let mut permanent = None;
        for (name, failure) in failures {
            match failure.explain(&format!("connect to {name}")) {
                StorageError::Unavailable { reason } => temporary.push(format!("{name}: {reason}")),
                error => permanent = permanent.or(Some(error)),
            }
        }
        match permanent {
            Some(error) if temporary.is_empty() => Err(error),
            permanent => {
                temporary.extend(permanent.map(|error| with_causes(&error)));
                Err(StorageError::Unavailable { reason: temporary.join("; ") })
            }
        }
    }

    /// Connects to the first address that accepts writes. The error contains the failure of each address.
    async fn connect_to(
        &self,
        server: &Server,
        addresses: &[Option<IpAddr>],
    ) -> Result<Connection, Vec<(String, Failure)>> {
        let mut failures = Vec::new();
        for address in addresses {
            match self.with_timeout(self.connect_at(server, *address)).await {
                Ok(connection) => {
                    *server.preferred.lock() = *address;
                    return Ok(connection);
                }
                Err(failure) => {
                    let name = match address {
                        Some(address) if addresses.len() > 1 => format!("{} at {address}", server.name),
                        _ => server.name.clone(),
                    };
                    failures.push((name, failure));
                }
            }
        }
        Err(failures)
    }

    async fn with_timeout<T>(&self, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        timeout(self.connect_timeout, step).await.unwrap_or(Err(Failure::Timeout(self.connect_timeout)))
    }

    async fn connect_at(&self, server: &Server, address: Option<IpAddr>) -> Result<Connection, Failure> {
        let mut config = server.config.clone();
        if let Some(address) = address {
            // The name is kept to verify the certificate.
            config.hostaddr(address);
        }
        let (client, connection) = config.connect(self.tls.clone()).await.map_err(Failure::Server)?;
        let task = runtime::spawn(async move {
            // Pending requests fail with the same error.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "database connection closed");
            }
        });
        let canceller =
            Canceller { token: client.cancel_token(), tls: self.tls.clone(), timeout: self.connect_timeout };
        let connection = Connection::new(client, task, self.statement_timeout, canceller);
        connection.prepare_session().await?;
        Ok(connection)
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("description", &self.description).finish_non_exhaustive()
    }
}

/// Returns the client configuration for one server of the URL.
fn config_of(settings: &PostgresSettings, index: usize, password: Option<&str>) -> Config {
    let url = settings.url.config();
    let (host, address) = (url.get_hosts().get(index), url.get_hostaddrs().get(index));
    let mut config = Config::new();
    let mut is_local = false;
    match host {
        Some(Host::Tcp(name)) => {
            is_local = is_loopback(name);
            config.host(name);
        }
        Some(Host::Unix(path)) => {
            config.host_path(path);
        }
        None => {}
    }
    if let Some(address) = address {
        is_local = address.is_loopback();
        config.hostaddr(*address);
        // Without a name, the certificate is verified against the address.
        if url.get_hosts().is_empty() {
            config.host(address.to_string());
        }
    }
    config.ssl_mode(match settings.tls {
        // A Unix socket does not leave the machine.
        _ if matches!(host, Some(Host::Unix(_))) => SslMode::Disable,
        Some(TlsMode::Disable) => SslMode::Disable,
        Some(TlsMode::Prefer) => SslMode::Prefer,
        Some(TlsMode::Require) => SslMode::Require,
        None if is_local => SslMode::Disable,
        None => SslMode::Require,
    });
    config.port(settings.url.port(index));
    if let Some(user) = url.get_user() {
        config.user(user);
    }
    if let Some(database) = url.get_dbname() {
        config.dbname(database);
    }
    if let Some(options) = url.get_options() {
        config.options(options);
    }
    if let Some(password) = password {
        config.password(password);
    }
    config
        .application_name(url.get_application_name().unwrap_or("enjambre"))
        .channel_binding(url.get_channel_binding())
        .target_session_attrs(TargetSessionAttrs::ReadWrite)
        .keepalives_idle(KEEPALIVE)
        .keepalives_interval(KEEPALIVE / 4)
        .keepalives_retries(4)
        .tcp_user_timeout(KEEPALIVE * 2)
        .connect_timeout(settings.connect_timeout);
    config
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use enjambre_core::Tenancy;
    use enjambre_tests::postgres::{Server as Real, USER};

    use super::*;

    #[tokio::test]
    async fn timed_out_address_does_not_shorten_the_next_timeout() {
        let Some(real) = Real::shared("the address test") else { return };
        let (dead, alive) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST);
        // Accepts connections and never answers.
        let Ok(_silent) = TcpListener::bind((dead, real.port())) else { return };
        let url = format!("postgresql://{USER}@localhost:{}/postgres", real.port());
        let settings = PostgresSettings { url: url.try_into().unwrap(), ..PostgresSettings::default() };
        let servers = Servers::new(&settings, &Place::new("/", Tenancy::Single)).unwrap();
        let server = &servers.servers[0];
        let addresses = [dead, alive].map(|address| Some(address.into()));
        servers.connect_to(server, &addresses).await.unwrap();
        assert_eq!(*server.preferred.lock(), Some(alive.into()), "it is preferred next time");
        assert_eq!(server.addresses().await.unwrap()[0], Some(alive.into()));

        let failures = servers.connect_to(server, &addresses[..1]).await.unwrap_err();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].1.to_string().contains("3s"), "{failures:?}");
    }
}
