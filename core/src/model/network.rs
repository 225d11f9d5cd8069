//! Address blocks that belong to one site.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the /64 network of an IPv6 address, since one host usually controls all of it, and an IPv4 address unchanged.
/// Limits per address apply to the result.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}
