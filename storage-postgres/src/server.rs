//! The way to the servers: names, password, certificates, and a session that is ready to be used.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use enjambre_core::readable::with_causes;
use enjambre_core::storage::error::StorageError;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::connection::{Canceller, Connection};
use crate::error::Failure;
use crate::settings::{PostgresSettings, TlsMode};

/// The variable that libpq reads as well.
const PGPASSWORD: &str = "PGPASSWORD";
/// After so long without a sign of the other machine a connection counts as broken, also while nothing is sent.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How many addresses of one name are tried at most.
const MAX_ADDRESSES: usize = 8;

/// One server of the URL.
struct Server {
    name: String,
    config: Config,
    /// The name and port to look addresses up for, where it has no other address than those.
    lookup: Option<(String, u16)>,
    /// The address that was connected to last, which is tried first.
    preferred: Mutex<Option<IpAddr>>,
}

impl Server {
    /// Its addresses, the best one first; none at all is where the client knows it itself.
    async fn addresses(&self) -> Result<Vec<Option<IpAddr>>, Failure> {
        let Some((name, port)) = &self.lookup else { return Ok(vec![None]) };
        let found = lookup_host((name.as_str(), *port)).await.map_err(Failure::Nameless)?;
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
            return Err(Failure::Nameless(io::ErrorKind::NotFound.into()));
        }
        Ok(addresses)
    }
}

/// Makes connections to whichever of the servers takes writes.
pub(crate) struct Servers {
    servers: Vec<Server>,
    /// The one that was connected to last, which is tried first.
    preferred: AtomicUsize,
    tls: MakeRustlsConnect,
    connect_timeout: Duration,
    /// How long a statement may take.
    pub(crate) patience: Duration,
    /// The database and its servers, for messages.
    pub(crate) name: String,
    /// Why there was no connection the last time; none where there was one.
    away: Mutex<Option<String>>,
    /// While there is none, one caller at a time looks whether there is one again; the others are told at once.
    looking: Semaphore,
}

impl Servers {
    /// Reads the password and the certificates. Blocks for as long as that takes.
    pub(crate) fn new(settings: &PostgresSettings, base: &Path) -> Result<Self, StorageError> {
        let password = password(settings, base)?;
        let url = settings.url.config();
        let mut servers = Vec::new();
        for index in 0..settings.url.servers() {
            let mut config = Config::new();
            let mut local = false;
            match url.get_hosts().get(index) {
                Some(Host::Tcp(name)) => {
                    local = is_loopback(name);
                    config.host(name);
                }
                Some(Host::Unix(path)) => {
                    local = true;
                    config.host_path(path);
                }
                None => {}
            }
            if let Some(address) = url.get_hostaddrs().get(index) {
                local = address.is_loopback();
                config.hostaddr(*address);
                // The certificate is for a name, or for the address.
                if url.get_hosts().is_empty() {
                    config.host(address.to_string());
                }
            }
            let lookup = match (url.get_hosts().get(index), url.get_hostaddrs().get(index)) {
                (Some(Host::Tcp(name)), None) => Some((name.clone(), settings.url.port(index))),
                _ => None,
            };
            let over_a_file = matches!(url.get_hosts().get(index), Some(Host::Unix(_)));
            config.ssl_mode(match settings.tls {
                _ if over_a_file => SslMode::Disable,
                Some(TlsMode::Disable) => SslMode::Disable,
                Some(TlsMode::Prefer) => SslMode::Prefer,
                Some(TlsMode::Require) => SslMode::Require,
                None if local => SslMode::Disable,
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
            if let Some(password) = &password {
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
            let name = settings.url.server(index);
            servers.push(Server { name, config, lookup, preferred: Mutex::default() });
        }
        let encrypted = servers.iter().any(|server| server.config.get_ssl_mode() != SslMode::Disable);
        Ok(Self {
            servers,
            preferred: AtomicUsize::new(0),
            tls: MakeRustlsConnect::new(tls_config(settings, base, encrypted)?),
            connect_timeout: settings.connect_timeout,
            patience: settings.timeout,
            name: settings.url.describe(),
            away: Mutex::default(),
            looking: Semaphore::new(1),
        })
    }

    /// A connection to the first server that takes writes.
    pub(crate) async fn connect(&self) -> Result<Connection, StorageError> {
        let away = self.away.lock().clone();
        let _look = match away {
            None => None,
            Some(reason) => match self.looking.try_acquire() {
                Ok(look) => Some(look),
                Err(_) => return Err(StorageError::Unavailable { reason }),
            },
        };
        let outcome = self.connect_to_any().await;
        *self.away.lock() = match &outcome {
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
            let addresses = self.in_time(server.addresses()).await;
            match addresses {
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
        let mut lasting = None;
        for (name, failure) in failures {
            match failure.explain(&format!("connect to {name}")) {
                StorageError::Unavailable { reason } => temporary.push(format!("{name}: {reason}")),
                error => lasting = lasting.or(Some(error)),
            }
        }
        match lasting {
            Some(error) if temporary.is_empty() => Err(error),
            lasting => {
                // What will not mend itself is said beside what may.
                temporary.extend(lasting.map(|error| with_causes(&error)));
                Err(StorageError::Unavailable { reason: temporary.join("; ") })
            }
        }
    }

    /// A connection to the first of these addresses that takes writes, or what happened at each.
    async fn connect_to(
        &self,
        server: &Server,
        addresses: &[Option<IpAddr>],
    ) -> Result<Connection, Vec<(String, Failure)>> {
        let mut failures = Vec::new();
        for address in addresses {
            match self.in_time(self.connect_at(server, *address)).await {
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

    /// What is done for one address, not for ever.
    async fn in_time<T>(&self, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        timeout(self.connect_timeout, step).await.unwrap_or(Err(Failure::Silent(self.connect_timeout)))
    }

    async fn connect_at(&self, server: &Server, address: Option<IpAddr>) -> Result<Connection, Failure> {
        let mut config = server.config.clone();
        if let Some(address) = address {
            // The name stays, for the certificate.
            config.hostaddr(address);
        }
        let (client, connection) = config.connect(self.tls.clone()).await.map_err(Failure::Server)?;
        let task = tokio::spawn(async move {
            // Whoever waits for an answer hears of it.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the database ended");
            }
        });
        let canceller =
            Canceller { token: client.cancel_token(), tls: self.tls.clone(), limit: self.connect_timeout };
        let connection = Connection::new(client, task, self.patience, canceller);
        connection.prepare_session().await?;
        Ok(connection)
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("name", &self.name).finish_non_exhaustive()
    }
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn refuse(action: String, problem: impl Into<String>) -> StorageError {
    StorageError::backend(action, problem.into())
}

fn password(settings: &PostgresSettings, base: &Path) -> Result<Option<String>, StorageError> {
    match (&settings.password_env, &settings.password_file) {
        (Some(_), Some(_)) => Err(refuse(
            "find the password".to_owned(),
            "both password_env and password_file are set; choose one of them",
        )),
        (Some(name), None) => match std::env::var(name) {
            Ok(password) => Ok(Some(password)),
            Err(_) => Err(refuse(
                "find the password".to_owned(),
                format!("the environment variable {name}, which password_env names, is not set"),
            )),
        },
        (None, Some(file)) => read_password(&base.join(file)).map(Some),
        (None, None) => Ok(std::env::var(PGPASSWORD).ok()),
    }
}

fn read_password(path: &Path) -> Result<String, StorageError> {
    let action = || format!("read the password from {}", path.display());
    let failed = |error: io::Error| StorageError::backend(action(), error);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).map_err(failed)?;
        // As libpq has it: a file of root's may be readable by a group.
        let forbidden = if metadata.uid() == 0 { 0o027 } else { 0o077 };
        if metadata.mode() & forbidden != 0 {
            return Err(refuse(action(), "others can read or write it; `chmod 600` it"));
        }
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let password = text.strip_suffix('\n').map_or(&text[..], |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() {
        return Err(refuse(action(), "it is empty"));
    }
    Ok(password.to_owned())
}

fn tls_config(
    settings: &PostgresSettings,
    base: &Path,
    encrypted: bool,
) -> Result<ClientConfig, StorageError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &settings.ca {
        let path = base.join(ca);
        let action = || format!("read the certificates in {}", path.display());
        let certificates = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| refuse(action(), error.to_string()))?;
        if certificates.is_empty() {
            return Err(refuse(action(), "there are none"));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| StorageError::backend(action(), error))?;
        }
    } else if encrypted {
        // Some of what a system has is too old to be read; the others count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StorageError::backend("set up TLS", error))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use enjambre_tests::postgres::{Server as Real, USER};

    use super::*;

    #[tokio::test]
    async fn an_address_that_says_nothing_takes_no_time_from_the_next_one() {
        let Some(real) = Real::shared("addresses of PostgreSQL") else { return };
        let (dead, alive) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST);
        // It takes connections, and nobody ever reads from them.
        let Ok(_silent) = TcpListener::bind((dead, real.port())) else { return };
        let url = format!("postgresql://{USER}@localhost:{}/postgres", real.port());
        let settings = PostgresSettings { url: url.try_into().unwrap(), ..PostgresSettings::default() };
        let servers = Servers::new(&settings, Path::new("/")).unwrap();
        let server = &servers.servers[0];
        let addresses = [dead, alive].map(|address| Some(address.into()));
        servers.connect_to(server, &addresses).await.unwrap();
        assert_eq!(*server.preferred.lock(), Some(alive.into()), "it is tried first the next time");
        assert_eq!(server.addresses().await.unwrap()[0], Some(alive.into()));

        let failures = servers.connect_to(server, &addresses[..1]).await.unwrap_err();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].1.to_string().contains("3s"), "{failures:?}");
    }
}
