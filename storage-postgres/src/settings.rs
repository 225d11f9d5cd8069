//! The table `[storage.postgres]` of the configuration. No password stands in it, only where to find one.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// The settings of the PostgreSQL storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// The server or servers, the user and the database, without a password.
    pub url: ServerUrl,
    /// The schema that holds the tables: 1 to 32 lower-case letters, digits and underscores. What is not the records goes
    /// into schemas of its own whose names begin with it. Where it is not set: `enjambre_catalogue` for what trackers
    /// share, and `enjambre_library` for the library of a peer.
    pub schema: Option<String>,
    /// How many connections read at once; one more writes.
    pub connections: usize,
    /// How long a server may take until a connection is ready, before the next one is tried.
    #[serde(with = "span")]
    pub connect_timeout: Duration,
    /// How long a start waits for a server that is away.
    #[serde(with = "span")]
    pub start_timeout: Duration,
    /// How long a statement, or the wait for a free connection, may take.
    #[serde(with = "span")]
    pub timeout: Duration,
    /// The environment variable that holds the password. Without this and `password_file` it is `PGPASSWORD`, if that is set.
    pub password_env: Option<String>,
    /// The file that holds the password, relative to the data directory. Nobody but its owner may be able to read it.
    pub password_file: Option<PathBuf>,
    /// Whether connections are encrypted. Where it is not set: to this machine not, to others always.
    pub tls: Option<TlsMode>,
    /// The certificates that the server's must be signed by, a PEM file relative to the data directory. Where it is not
    /// set: those that the system trusts.
    pub ca: Option<PathBuf>,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            url: ServerUrl::try_from("postgresql://enjambre@localhost/enjambre".to_owned())
                .expect("the default is a URL without a password"),
            schema: None,
            connections: 8,
            connect_timeout: Duration::from_secs(3),
            start_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            password_env: None,
            password_file: None,
            tls: None,
            ca: None,
        }
    }
}

/// Whether connections are encrypted. Wherever they are, the server's certificate and name are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Always, or there is no connection.
    Require,
    /// Where the server offers it. That does not help against somebody in between, who can say that it does not.
    Prefer,
    /// Never.
    Disable,
}

/// Which servers to connect to, as which user, and to which database:
/// `postgresql://USER@HOST[:PORT][,HOST[:PORT]..]/DATABASE`, or libpq's `host=.. user=.. dbname=..`.
///
/// It never holds a password, so it can be shown.
#[derive(Clone)]
pub struct ServerUrl {
    text: String,
    config: Config,
}

impl ServerUrl {
    /// As the client understands it.
    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    /// The database and its servers, for messages.
    pub(crate) fn describe(&self) -> String {
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or("the default database");
        let servers: Vec<String> = (0..self.servers()).map(|index| self.server(index)).collect();
        format!("{database} on {}", servers.join(","))
    }

    /// How many servers there are.
    pub(crate) fn servers(&self) -> usize {
        self.config.get_hosts().len().max(self.config.get_hostaddrs().len())
    }

    /// A server's name and port, for messages.
    pub(crate) fn server(&self, index: usize) -> String {
        let port = self.port(index);
        match (self.config.get_hosts().get(index), self.config.get_hostaddrs().get(index)) {
            (Some(Host::Tcp(name)), _) => format!("{name}:{port}"),
            (Some(Host::Unix(path)), _) => format!("{}:{port}", path.display()),
            (None, Some(address)) => format!("{address}:{port}"),
            (None, None) => format!("an unnamed server:{port}"),
        }
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        let ports = self.config.get_ports();
        ports.get(index).or(ports.first()).copied().unwrap_or(5432)
    }
}

/// Why a text is not a [`ServerUrl`]. It never repeats the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// It has another form.
    #[error("this is no URL of a server; it looks like postgresql://USER@HOST:5432/DATABASE")]
    Malformed,
    /// A password is in it.
    #[error(
        "a password does not belong into the URL, where others can see it; put it into an environment variable \
         and name that in password_env, or into a file of your own and name that in password_file"
    )]
    Password,
    /// TLS is set in it.
    #[error(
        "whether connections are encrypted is not said in the URL but with tls = \"require\", \"prefer\" or \"disable\""
    )]
    Tls,
}

impl TryFrom<String> for ServerUrl {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        let config: Config = text.parse().map_err(|_| InvalidUrl::Malformed)?;
        if config.get_password().is_some() {
            return Err(InvalidUrl::Password);
        }
        if config.get_ssl_mode() != SslMode::Prefer {
            return Err(InvalidUrl::Tls);
        }
        let (hosts, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
        let servers = hosts.max(addresses);
        if servers == 0
            || (hosts != 0 && addresses != 0 && hosts != addresses)
            || (config.get_ports().len() > 1 && config.get_ports().len() != servers)
        {
            return Err(InvalidUrl::Malformed);
        }
        Ok(Self { text, config })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl PartialEq for ServerUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ServerUrl {}

impl Serialize for ServerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ServerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// Lengths of time as people write them: `"500ms"`, `"10s"`; from 1 ms to 1 h.
mod span {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*span))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .ok()
            .filter(|span| (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(span))
            .ok_or_else(|| serde::de::Error::custom("expected a length of time from \"1ms\" to \"1h\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> InvalidUrl {
        ServerUrl::try_from(url.to_owned()).unwrap_err()
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        for url in [
            "postgresql://u:hunter2@db/enjambre",
            "postgresql://u@db/enjambre?password=hunter2",
            "host=db user=u password=hunter2",
            "host=db user=u password='hunter2'",
            "postgresql://u:hunter2?@db/enjambre",
        ] {
            let error = refused(url);
            assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"));
        }
        let error = refused("postgresql://u:hunter2@db/enjambre").to_string();
        assert!(error.contains("password_env") && error.contains("password_file"), "{error}");
    }

    #[test]
    fn what_cannot_be_connected_to_is_refused() {
        for url in ["", "enjambre", "postgresql://", "postgresql:///enjambre", "http://db/x", "user=u"] {
            assert_eq!(refused(url), InvalidUrl::Malformed, "{url}");
        }
        assert_eq!(refused("postgresql://u@db/enjambre?sslmode=disable"), InvalidUrl::Tls);
    }

    #[test]
    fn several_servers_can_be_named() {
        let url = ServerUrl::try_from("postgresql://u@a,b:5433/x".to_owned()).unwrap();
        assert_eq!(url.describe(), "x on a:5432,b:5433");
        assert_eq!(url.servers(), 2);
    }
}
