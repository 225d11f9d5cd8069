//! The table `[storage.postgres]` of the configuration. No password stands in it, only where to find one.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

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
    /// How many connections read at once. Beside them one writes, or two where the schema is shared.
    pub connections: usize,
    /// How long an address of a server may take until a connection is ready, before the next one is tried.
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
    /// A parameter of it would be without effect.
    #[error("{parameter} does not belong into the URL, where it would change nothing: {instead}")]
    Unused {
        /// Its name.
        parameter: &'static str,
        /// What to do.
        instead: &'static str,
    },
}

/// The parameters that count.
const USED: [&str; 8] =
    ["user", "dbname", "host", "hostaddr", "port", "options", "application_name", "channel_binding"];

/// The parameters of other programs that do not, and what is done here in their place.
const UNUSED: [(&[&str], &str); 10] = [
    (&["sslmode", "requiressl"], "set tls = \"require\", \"prefer\" or \"disable\" beside url"),
    (&["sslrootcert"], "name the file in ca beside url"),
    (&["passfile"], "name a file with nothing but the password in password_file beside url"),
    (&["connect_timeout"], "set connect_timeout beside url, as in \"3s\""),
    (&["target_session_attrs"], "the server that takes writes is taken, always; leave it out"),
    (&["load_balance_hosts"], "the first server that takes writes is taken; leave it out"),
    (&["sslnegotiation"], "encryption is asked for first, and then begun; leave it out"),
    (
        &["sslcert", "sslkey", "sslpassword", "sslcertmode"],
        "there are no certificates of clients; leave it out",
    ),
    (
        &[
            "keepalives",
            "keepalives_idle",
            "keepalives_interval",
            "keepalives_count",
            "keepalives_retries",
            "tcp_user_timeout",
        ],
        "a machine that has vanished is noticed after about 20 s; leave it out",
    ),
    (
        &[
            "client_encoding",
            "fallback_application_name",
            "gssdelegation",
            "gssencmode",
            "gsslib",
            "krbsrvname",
            "max_protocol_version",
            "min_protocol_version",
            "replication",
            "require_auth",
            "requirepeer",
            "service",
            "servicefile",
            "ssl_max_protocol_version",
            "ssl_min_protocol_version",
            "sslcompression",
            "sslcrl",
            "sslcrldir",
            "sslsni",
        ],
        "this program does not have it; leave it out",
    ),
];

impl InvalidUrl {
    /// Of a parameter that is known to be without effect.
    fn unused(name: &str) -> Option<Self> {
        UNUSED.iter().find_map(|(names, instead)| {
            let parameter = names.iter().find(|parameter| **parameter == name)?;
            Some(Self::Unused { parameter, instead })
        })
    }
}

/// The names of the parameters, as far as the text has the form of them. What is not a name may be in it where the form is
/// another one, and a password in that.
fn parameters(text: &str) -> Vec<&str> {
    match ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => {
            let rest = rest.split_once('@').map_or(rest, |(_, rest)| rest);
            let Some((_, mut rest)) = rest.split_once('?') else { return Vec::new() };
            let mut names = Vec::new();
            while let Some((name, value)) = rest.split_once('=') {
                names.push(name);
                rest = value.split_once('&').map_or("", |(_, rest)| rest);
            }
            names
        }
        None => pairs(text),
    }
}

/// The names in `NAME=VALUE NAME='VALUE'`, where a backslash takes a character as it is.
fn pairs(mut rest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    while let Some((name, value)) = rest.split_once('=') {
        names.push(name.trim());
        let value = value.trim_start();
        let (value, quoted) = value.strip_prefix('\'').map_or((value, false), |value| (value, true));
        let mut escaped = false;
        let end = value.find(|letter: char| {
            let ends = !escaped && if quoted { letter == '\'' } else { letter.is_whitespace() };
            escaped = !escaped && letter == '\\';
            ends
        });
        let mut behind = end.map_or("", |end| &value[end..]).chars();
        behind.next();
        rest = behind.as_str();
    }
    names
}

impl TryFrom<String> for ServerUrl {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        let names = parameters(&text);
        let config = text.parse::<Config>();
        if names.contains(&"password") || config.as_ref().is_ok_and(|config| config.get_password().is_some())
        {
            return Err(InvalidUrl::Password);
        }
        if let Some(unused) = names.iter().find_map(|name| InvalidUrl::unused(name)) {
            return Err(unused);
        }
        let config = config.map_err(|_| InvalidUrl::Malformed)?;
        if names.iter().any(|name| !USED.contains(name)) {
            return Err(InvalidUrl::Malformed);
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
    }

    #[test]
    fn a_parameter_that_would_change_nothing_is_refused_by_its_name() {
        for (names, instead) in UNUSED {
            for name in names {
                for url in [
                    format!("postgresql://u@db/x?application_name=a@b&{name}=1"),
                    format!("postgres://db?user=u&{name}=disable&application_name=x"),
                    format!("host=db  user = 'u \\' x=' dbname=a\\ b {name}=1"),
                ] {
                    let error = refused(&url);
                    assert_eq!(error, InvalidUrl::Unused { parameter: name, instead }, "{url}");
                    let text = error.to_string();
                    assert!(text.contains(name) && text.contains(instead), "{text}");
                }
            }
        }
        // What is written in another way is not let through either.
        for url in ["postgresql://u@db/x?ssl%6Dode=disable", "host=db user=u SSLMODE=disable"] {
            assert_eq!(refused(url), InvalidUrl::Malformed, "{url}");
        }
        let all = "options=-csearch_path%3Dx&application_name=a&channel_binding=require&port=1";
        for url in [
            &format!("postgresql://u@/x?host=%2Frun&{all}"),
            "host=db user=u application_name='a=b sslmode=x'",
        ] {
            ServerUrl::try_from((*url).to_owned()).unwrap();
        }
    }

    #[test]
    fn several_servers_can_be_named() {
        let url = ServerUrl::try_from("postgresql://u@a,b:5433/x".to_owned()).unwrap();
        assert_eq!(url.describe(), "x on a:5432,b:5433");
        assert_eq!(url.servers(), 2);
    }
}
