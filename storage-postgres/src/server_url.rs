//! The connection string of the configuration. It is parsed and checked once, when the configuration is loaded.

use std::fmt;

use serde::{Deserialize, Serialize};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The connection string: servers, user and database. Either a URL such as
/// `postgresql://USER@HOST[:PORT][,HOST[:PORT]..]/DATABASE`, or keywords and values such as `host=.. user=.. dbname=..`
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>).
///
/// It never contains a password, so it may be logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServerUrl {
    text: String,
    config: Config,
}

impl ServerUrl {
    /// The parsed connection string.
    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the database and its servers, for messages.
    pub(crate) fn describe(&self) -> String {
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or("the default database");
        let servers: Vec<String> = (0..self.servers()).map(|index| self.server(index)).collect();
        format!("{database} on {}", servers.join(","))
    }

    /// Returns the number of servers.
    pub(crate) fn servers(&self) -> usize {
        self.config.get_hosts().len().max(self.config.get_hostaddrs().len())
    }

    /// Returns the name and port of a server, for messages.
    pub(crate) fn server(&self, index: usize) -> String {
        let port = self.port(index);
        match (self.config.get_hosts().get(index), self.config.get_hostaddrs().get(index)) {
            (Some(Host::Tcp(name)), _) => format!("{name}:{port}"),
            (Some(Host::Unix(path)), _) => format!("{}:{port}", path.display()),
            (None, Some(address)) => format!("{address}:{port}"),
            (None, None) => format!("unnamed server:{port}"),
        }
    }

    /// Returns the name and port to resolve, or `None` for a Unix socket or an address.
    pub(crate) fn lookup(&self, index: usize) -> Option<(String, u16)> {
        match (self.config.get_hosts().get(index), self.config.get_hostaddrs().get(index)) {
            (Some(Host::Tcp(name)), None) => Some((name.clone(), self.port(index))),
            _ => None,
        }
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        let ports = self.config.get_ports();
        ports.get(index).or(ports.first()).copied().unwrap_or(5432)
    }
}

/// The error of an invalid [`ServerUrl`]. It does not contain the text, which may include a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// The text is not a connection string, or a parameter is unknown.
    #[error("invalid server URL or unknown parameter; expected postgresql://USER@HOST:5432/DATABASE")]
    Malformed,
    /// The text contains a password.
    #[error(
        "the server URL must not contain a password; set password_env to the name of an environment variable, or \
         password_file to the path of a file"
    )]
    Password,
    /// The text contains a parameter that is not supported.
    #[error("parameter {parameter} of the server URL is not supported; {remedy}")]
    Unsupported {
        /// The name of the parameter.
        parameter: &'static str,
        /// The supported alternative.
        remedy: &'static str,
    },
}

/// The supported parameters.
const SUPPORTED: [&str; 8] =
    ["user", "dbname", "host", "hostaddr", "port", "options", "application_name", "channel_binding"];

/// The parameters of libpq that have an alternative.
const UNSUPPORTED: [(&[&str], &str); 4] = [
    (&["sslmode", "requiressl"], "set the key tls to \"require\", \"prefer\" or \"disable\""),
    (&["sslrootcert"], "set the key ca to the path of the certificates"),
    (&["passfile"], "set the key password_file to the path of a file that contains only the password"),
    (&["connect_timeout"], "set the key connect_timeout, for example to \"3s\""),
];

impl InvalidUrl {
    fn unsupported(name: &str) -> Option<Self> {
        UNSUPPORTED.iter().find_map(|(names, remedy)| {
            let parameter = names.iter().find(|parameter| **parameter == name)?;
            Some(Self::Unsupported { parameter, remedy })
        })
    }
}

/// Returns the names of the parameters. If the text is malformed, the result may contain other parts of it, even a password,
/// and must not be shown.
fn parameter_names(text: &str) -> Vec<&str> {
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
        None => keyword_names(text),
    }
}

/// Returns the names in `NAME=VALUE NAME='VALUE'`. A backslash escapes a character of a value.
fn keyword_names(mut rest: &str) -> Vec<&str> {
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
        let mut remaining = end.map_or("", |end| &value[end..]).chars();
        remaining.next();
        rest = remaining.as_str();
    }
    names
}

impl TryFrom<String> for ServerUrl {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        let names = parameter_names(&text);
        let config = text.parse::<Config>();
        if names.contains(&"password") || config.as_ref().is_ok_and(|config| config.get_password().is_some())
        {
            return Err(InvalidUrl::Password);
        }
        if let Some(error) = names.iter().find_map(|name| InvalidUrl::unsupported(name)) {
            return Err(error);
        }
        let config = config.map_err(|_| InvalidUrl::Malformed)?;
        if names.iter().any(|name| !SUPPORTED.contains(name)) {
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

impl From<ServerUrl> for String {
    fn from(url: ServerUrl) -> Self {
        url.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> InvalidUrl {
        ServerUrl::try_from(url.to_owned()).unwrap_err()
    }

    #[test]
    fn url_with_password_is_refused_and_redacted() {
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
    fn url_without_server_is_refused() {
        for url in ["", "enjambre", "postgresql://", "postgresql:///enjambre", "http://db/x", "user=u"] {
            assert_eq!(refused(url), InvalidUrl::Malformed, "{url}");
        }
    }

    #[test]
    fn unsupported_parameter_is_refused_by_name() {
        for (names, remedy) in UNSUPPORTED {
            for name in names {
                for url in [
                    format!("postgresql://u@db/x?application_name=a@b&{name}=1"),
                    format!("postgres://db?user=u&{name}=disable&application_name=x"),
                    format!("host=db  user = 'u \\' x=' dbname=a\\ b {name}=1"),
                ] {
                    let error = refused(&url);
                    assert_eq!(error, InvalidUrl::Unsupported { parameter: name, remedy }, "{url}");
                    let text = error.to_string();
                    assert!(text.contains(name) && text.contains(remedy), "{text}");
                }
            }
        }
        // Other spellings of a name are refused too.
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
    fn url_may_contain_several_servers() {
        let url = ServerUrl::try_from("postgresql://u@a,b:5433/x".to_owned()).unwrap();
        assert_eq!(url.describe(), "x on a:5432,b:5433");
        assert_eq!(url.servers(), 2);
    }
}
