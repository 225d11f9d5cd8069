//! Where a tracker or peer listens, as people write it: `zmq://host:port`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an endpoint: {problem}; expected SCHEME://HOST:PORT, for example zmq://127.0.0.1:7700"
)]
pub struct ParseEndpointError {
    /// The text as it was given, cut to a length that can be shown.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The longest endpoint in bytes, so that one from the network stays small.
pub const MAX_ENDPOINT: usize = 300;
/// The longest scheme and host in bytes. Together with an address in brackets and a port they stay below
/// [`MAX_ENDPOINT`], so what was read can be told on, also when the host was filled in.
const MAX_SCHEME: usize = 32;
const MAX_HOST: usize = 253;

/// A transport's scheme, a host (name or address) and a port. Port 0 asks for a free port when listening.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    scheme: String,
    host: String,
    port: u16,
}

impl Endpoint {
    /// The scheme, which names the transport: `zmq`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The host: a name, an IPv4 address, or an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The same endpoint at another port: the one the system chose.
    pub fn with_port(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// The same scheme and port at an address.
    pub fn with_address(&self, address: IpAddr) -> Self {
        Self { host: address.to_string(), ..self.clone() }
    }

    /// Whether the host is a loopback address or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    /// Whether the host means every address of the machine (`0.0.0.0` or `::`), which is no address to dial.
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        let refuse = |problem| ParseEndpointError { text: text.chars().take(80).collect(), problem };
        if text.len() > MAX_ENDPOINT {
            return Err(refuse("it is too long"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refuse("it has no scheme"))?;
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(refuse("its scheme is not of lower-case letters and digits"));
        }
        if scheme.len() > MAX_SCHEME {
            return Err(refuse("its scheme has more than 32 characters"));
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| refuse("it has no port"))?;
        let port = port.parse().map_err(|_| refuse("its port is not a number from 0 to 65535"))?;
        let host = match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
            Some(Some(inner)) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(refuse("there is no IPv6 address in its brackets")),
            None => host,
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if host.is_empty() || !(host.bytes().all(plain) || host.parse::<std::net::Ipv6Addr>().is_ok()) {
            return Err(refuse("its host is not a name or an address"));
        }
        if host.len() > MAX_HOST {
            return Err(refuse("its host has more than 253 characters"));
        }
        Ok(Self { scheme: scheme.to_owned(), host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "{}://[{}]:{}", self.scheme, self.host, self.port)
        } else {
            write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_back_from_its_text() {
        for text in ["zmq://127.0.0.1:7700", "tcp://tracker.example.org:0", "zmq://[::1]:65535"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert!("zmq://[::1]:1".parse::<Endpoint>().unwrap().is_loopback());
        assert!("zmq://0.0.0.0:1".parse::<Endpoint>().unwrap().is_unspecified());
    }

    #[test]
    fn an_endpoint_that_was_read_can_be_told_on_with_any_address() {
        let long = "2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
        for scheme in [MAX_SCHEME, MAX_SCHEME + 1, 250, 284] {
            for host in ["0.0.0.0", "::1"] {
                let Ok(endpoint) = format!("{}://{host}:1", "a".repeat(scheme)).parse::<Endpoint>() else {
                    assert!(scheme > MAX_SCHEME);
                    continue;
                };
                for told in [endpoint.with_address(long), endpoint] {
                    assert_eq!(told.to_string().parse::<Endpoint>(), Ok(told));
                }
            }
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for text in [
            "",
            "127.0.0.1:1",
            "zmq://",
            "zmq://h",
            "zmq://h:x",
            "zmq://h:65536",
            "zmq://a b:1",
            "zmq://[x]:1",
            "ZMQ://h:1",
            "zmq://:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }
}
