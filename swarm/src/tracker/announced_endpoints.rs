//! The endpoints of a peer that other peers receive.
//!
//! Other peers connect to these endpoints. So that a peer cannot direct them to other hosts, it may only announce the address
//! from which it reaches the tracker, and the hosts that the operator of the tracker permits.

use std::net::{IpAddr, Ipv4Addr};

use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::{Endpoint, PeerInfo};

/// Returns whether the peer runs on this host.
pub(super) fn is_local(peer: &PeerInfo) -> bool {
    peer.address.is_none_or(|address| address.to_canonical().is_loopback())
}

/// Returns the endpoints that other peers receive. Replaces an unspecified host by the address of the connection, and removes
/// peer ids, which the replies contain separately. Leaves out endpoints that the peer may not announce.
pub(super) fn announced_endpoints(
    endpoints: &[Endpoint],
    peer: &PeerInfo,
    is_permitted: impl Fn(&Endpoint) -> bool,
) -> Result<Vec<Endpoint>, ErrorReply> {
    let mut announced = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        if endpoint.port() == 0 {
            let problem = format!("endpoint {endpoint} is unreachable: its port is 0");
            return Err(ErrorReply::new(ErrorCode::Malformed, problem));
        }
        let Some(endpoint) = observed(&endpoint.with_id(None), peer.address) else { continue };
        if may_announce(&endpoint, peer, &is_permitted) && !announced.contains(&endpoint) {
            announced.push(endpoint);
        }
    }
    Ok(announced)
}

/// Replaces an unspecified host. Returns `None` if a listener at `0.0.0.0` is not reachable at the address, which is IPv6.
fn observed(endpoint: &Endpoint, address: Option<IpAddr>) -> Option<Endpoint> {
    let Some(address) = address.map(|address| address.to_canonical()) else { return Some(endpoint.clone()) };
    match endpoint.address() {
        Some(IpAddr::V4(host)) if host.is_unspecified() && address.is_ipv6() => {
            address.is_loopback().then(|| endpoint.with_address(Ipv4Addr::LOCALHOST.into()))
        }
        Some(host) if host.is_unspecified() => Some(endpoint.with_address(address)),
        _ => Some(endpoint.clone()),
    }
}

fn may_announce(endpoint: &Endpoint, peer: &PeerInfo, is_permitted: impl Fn(&Endpoint) -> bool) -> bool {
    let Some(address) = peer.address else { return true };
    if is_local(peer) {
        return endpoint.is_loopback() || endpoint.is_routable();
    }
    endpoint.is_routable() && (endpoint.address() == Some(address.to_canonical()) || is_permitted(endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::{ConnectionHandle, ConnectionId};

    /// Returns the endpoints that a peer at `address` announces if `permitted` is a permitted host.
    fn announced(address: Option<&str>, endpoints: &[&str], permitted: &str) -> Vec<String> {
        let peer = PeerInfo {
            connection: ConnectionId(1),
            handle: ConnectionHandle::default(),
            address: address.map(|text| text.parse().unwrap()),
            identity: None,
        };
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| text.parse().unwrap()).collect();
        let announced = announced_endpoints(&endpoints, &peer, |endpoint| endpoint.host() == permitted);
        announced.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unspecified_host_becomes_connection_address() {
        let any = ["zmq://0.0.0.0:7710", "zmq://[::]:7710", "zmq://[::]:7711"];
        let at = |address| announced(Some(address), &any, "");
        assert_eq!(at("::ffff:10.0.0.7"), ["zmq://10.0.0.7:7710", "zmq://10.0.0.7:7711"]);
        assert_eq!(at("2001:db8::7"), ["zmq://[2001:db8::7]:7710", "zmq://[2001:db8::7]:7711"]);
        assert_eq!(announced(Some("2001:db8::7"), &any[..1], ""), [""; 0], "it listens on IPv4 only");
        assert_eq!(announced(Some("::1"), &any[..1], ""), ["zmq://127.0.0.1:7710"]);
        assert_eq!(announced(None, &any, ""), any);
    }

    #[test]
    fn remote_peer_announces_only_its_own_and_permitted_hosts() {
        let own = "tcp://10.0.0.7:1";
        let others = [
            "tcp://10.0.0.8:1",
            "tcp://victim.example.org:1",
            "tcp://localhost.:1",
            "tcp://127.0.0.1:1",
            "tcp://[::ffff:127.0.0.1]:1",
            "tcp://169.254.169.254:80",
            "tcp://224.0.0.1:1",
        ];
        let all = [&[own, "tcp://[::ffff:10.0.0.7]:2"], &others[..]].concat();
        assert_eq!(announced(Some("10.0.0.7"), &all, "10.0.0.9"), [own, "tcp://10.0.0.7:2"]);
        assert_eq!(announced(Some("10.0.0.9"), &all, "victim.example.org"), ["tcp://victim.example.org:1"]);
        assert_eq!(announced(Some("10.0.0.9"), &all, "127.0.0.1"), [""; 0]);
    }

    #[test]
    fn local_peer_announces_loopback_and_other_hosts() {
        let all = ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://10.0.0.8:1", "tcp://169.254.1.1:1"];
        assert_eq!(announced(Some("127.0.0.1"), &all, ""), all[..3]);
    }

    #[test]
    fn port_0_is_malformed() {
        let peer = PeerInfo {
            connection: ConnectionId(1),
            handle: ConnectionHandle::default(),
            address: None,
            identity: None,
        };
        let endpoint = "zmq://0.0.0.0:0".parse().unwrap();
        let error = announced_endpoints(&[endpoint], &peer, |_| true).unwrap_err();
        assert_eq!(error.code, ErrorCode::Malformed);
    }
}
