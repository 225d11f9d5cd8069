//! Classes of addresses: blocks that belong to one site, and addresses that other hosts can reach.

use std::net::{IpAddr, Ipv6Addr};

/// Returns whether the address may belong to another host. False for loopback, link-local, multicast and unspecified
/// addresses, which denote something else on each host.
pub fn is_routable(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let this_network = v4.octets()[0] == 0;
            !(this_network
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast())
        }
    }
}

/// Returns the /64 network of an IPv6 address, since one host usually controls all of it, and an IPv4 address unchanged.
/// Limits per address apply to the result.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}
