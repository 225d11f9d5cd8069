//! Endpoints of trackers and peers: `zmq://host:port`, or `zmqs://id@host:port` with the id of the expected peer.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::id::PeerId;
use super::network::is_routable;

/// The text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid endpoint {text:?}: {problem}; expected SCHEME://HOST:PORT or SCHEME://ID@HOST:PORT, for example zmq://127.0.0.1:7700"
)]
pub struct ParseEndpointError {
    /// The text, truncated to 80 characters.
    pub text: String,
    /// The violated rule.
    pub problem: &'static str,
}

/// The maximum length of an endpoint in bytes.
pub const MAX_ENDPOINT: usize = 400;
/// The maximum length of a scheme and of a host in bytes. With an id, brackets and a port they stay below [`MAX_ENDPOINT`], so a
/// parsed endpoint remains valid after its id and host are replaced.
const MAX_SCHEME: usize = 32;
const MAX_HOST: usize = 253;

/// A scheme, which names the transport, a host name or address, and a port. When listening, port 0 selects a free port. For
/// connections over an authenticated transport, the endpoint also contains the id of the expected peer. Clones share one
/// allocation.
///
/// The host is in canonical form: names in lower case without a final dot, addresses as the standard library formats them,
/// IPv4-mapped IPv6 addresses as IPv4. Other notations of IPv4 addresses, such as `127.1`, are invalid.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(Arc<Parts>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Parts {
    scheme: String,
    id: Option<PeerId>,
    host: String,
    port: u16,
}

impl Endpoint {
    fn of(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The scheme, which names the transport, for example `zmq`.
    pub fn scheme(&self) -> &str {
        &self.0.scheme
    }

    /// The id of the expected peer, if given.
    pub fn id(&self) -> Option<PeerId> {
        self.0.id
    }

    /// The host: a name, an IPv4 address, or an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Returns the endpoint with another port.
    pub fn with_port(&self, port: u16) -> Self {
        Self::of(Parts { port, ..Parts::clone(&self.0) })
    }

    /// Returns the endpoint with another id or without one.
    pub fn with_id(&self, id: Option<PeerId>) -> Self {
        Self::of(Parts { id, ..Parts::clone(&self.0) })
    }

    /// Returns the endpoint with this address as the host.
    pub fn with_address(&self, address: IpAddr) -> Self {
        Self::of(Parts { host: address.to_string(), ..Parts::clone(&self.0) })
    }

    /// The address in the host; `None` if the host is a name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }

    /// Returns whether the host is a loopback address or `localhost`.
    pub fn is_loopback(&self) -> bool {
        match self.address() {
            Some(address) => address.is_loopback(),
            None => self.host() == "localhost" || self.host().ends_with(".localhost"),
        }
    }

    /// Returns whether the host is `0.0.0.0` or `::`. Such an endpoint is valid for listening only.
    pub fn is_unspecified(&self) -> bool {
        self.address().is_some_and(|address| address.is_unspecified())
    }

    /// Returns whether the endpoint may belong to another host. A name may still resolve to an address that does not.
    pub fn is_routable(&self) -> bool {
        self.address().map_or_else(|| !self.is_loopback(), is_routable)
    }
}

/// Returns the canonical form of a host without brackets, or the violated rule.
fn canonical_host(host: &str) -> Result<String, &'static str> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(address.to_canonical().to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if name.len() > MAX_HOST {
        return Err("the host is longer than 253 characters");
    }
    if !name.split('.').all(|label| !label.is_empty() && label.bytes().all(plain)) {
        return Err("the host is not a name or an address");
    }
    // Resolvers read a name whose last label is a number as an IPv4 address (WHATWG URL, section 3.5).
    let last = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let hexadecimal = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    if hexadecimal || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the host is not an IPv4 address of four decimal numbers");
    }
    Ok(name.to_ascii_lowercase())
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        let refuse = |problem| ParseEndpointError { text: text.chars().take(80).collect(), problem };
        if text.len() > MAX_ENDPOINT {
            return Err(refuse("the text is too long"));
        }
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| refuse("missing \"://\" after the scheme"))?;
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(refuse("the scheme contains characters other than lower-case letters and digits"));
        }
        if scheme.len() > MAX_SCHEME {
            return Err(refuse("the scheme is longer than 32 characters"));
        }
        let (id, rest) = match rest.split_once('@') {
            Some((id, rest)) => {
                let id =
                    id.parse().map_err(|_| refuse("the id before the @ is not 64 hexadecimal digits"))?;
                (Some(id), rest)
            }
            None => (None, rest),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| refuse("missing port"))?;
        let port = port.parse().map_err(|_| refuse("the port is not a number from 0 to 65535"))?;
        let host = match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
            Some(Some(inner)) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(refuse("the brackets do not contain an IPv6 address")),
            None => host,
        };
        let host = canonical_host(host).map_err(refuse)?;
        Ok(Self::of(Parts { scheme: scheme.to_owned(), id, host, port }))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { scheme, id, host, port } = &*self.0;
        write!(f, "{scheme}://")?;
        if let Some(id) = id {
            write!(f, "{id}@")?;
        }
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Formats endpoints for people, separated by commas.
pub fn list(endpoints: &[Endpoint]) -> String {
    let texts: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    texts.join(", ")
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
    fn endpoint_round_trips_through_text() {
        for text in ["zmq://127.0.0.1:7700", "tcp://tracker.example.org:0", "zmq://[::1]:65535"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        let id = PeerId::from_bytes([0xab; 32]);
        for text in [format!("tcps://{id}@127.0.0.1:7700"), format!("zmqs://{id}@[::1]:65535")] {
            let endpoint = text.parse::<Endpoint>().unwrap();
            assert_eq!((endpoint.to_string(), endpoint.id()), (text, Some(id)));
        }
        assert!("zmq://[::1]:1".parse::<Endpoint>().unwrap().is_loopback());
        assert!("zmq://0.0.0.0:1".parse::<Endpoint>().unwrap().is_unspecified());
    }

    #[test]
    fn host_is_parsed_into_its_canonical_form() {
        for (text, canonical) in [
            ("tcp://Tracker.Example.ORG.:1", "tcp://tracker.example.org:1"),
            ("tcp://[::ffff:127.0.0.1]:1", "tcp://127.0.0.1:1"),
            ("tcp://[2001:DB8:0::1]:1", "tcp://[2001:db8::1]:1"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), canonical);
        }
        for host in
            ["127.1", "2130706433", "0x7f000001", "0x7F.0.0.0x1", "127.0.0.1.", "017700000001", "1.2.3.256"]
        {
            assert!(format!("tcp://{host}:1").parse::<Endpoint>().is_err(), "{host}");
        }
    }

    #[test]
    fn addresses_of_this_host_or_link_are_not_routable() {
        let endpoint = |host: &str| format!("tcp://{host}:1").parse::<Endpoint>().unwrap();
        for host in ["127.9.9.9", "LOCALHOST", "localhost.", "a.localhost", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(endpoint(host).is_loopback() && !endpoint(host).is_routable(), "{host}");
        }
        let local = ["0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255"];
        for host in local.into_iter().chain(["[::]", "[fe80::1]", "[ff02::1]", "[::ffff:169.254.1.1]"]) {
            assert!(!endpoint(host).is_routable(), "{host}");
        }
        for host in ["10.0.0.1", "192.0.2.1", "[2001:db8::1]", "[fd00::1]", "peer.example.org"] {
            assert!(endpoint(host).is_routable(), "{host}");
        }
    }

    #[test]
    fn parsed_endpoint_with_any_address_is_valid() {
        let long = "2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
        for scheme in [MAX_SCHEME, MAX_SCHEME + 1, 250, 384] {
            for host in ["0.0.0.0", "::1"] {
                let Ok(endpoint) = format!("{}://{host}:1", "a".repeat(scheme)).parse::<Endpoint>() else {
                    assert!(scheme > MAX_SCHEME);
                    continue;
                };
                let id = Some(PeerId::from_bytes([7; 32]));
                for changed in [endpoint.with_address(long).with_id(id), endpoint] {
                    assert_eq!(changed.to_string().parse::<Endpoint>(), Ok(changed));
                }
            }
        }
    }

    #[test]
    fn invalid_endpoint_is_refused() {
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
            "zmqs://@h:1",
            "zmqs://abcd@h:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }
}
