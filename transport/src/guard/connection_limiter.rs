//! The limits on accepted connections, in total and per address.
//!
//! If the total limit is reached, a connection from an address with few connections replaces one from the address with the
//! most. So a remote with many connections cannot exclude other addresses. The newest connection is replaced, because older
//! ones are more likely in use.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use enjambre_core::model::network::network_of;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::disconnect::Disconnect;

/// Maximum number of replaced connections that are still open.
pub(super) const MAX_CLOSING: usize = 64;
/// The prefix length of an IPv6 site (RFC 6177), which contains 65,536 networks.
const SITE_BITS: u32 = 48;

#[derive(Debug, Default)]
struct Connections {
    active: usize,
    /// By site, oldest first.
    by_site: HashMap<IpAddr, Vec<Entry>>,
    /// Replaced connections that are still open.
    closing: usize,
    last_number: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    network: IpAddr,
    revoked: CancellationToken,
}

/// Counts the accepted connections of all listeners.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    total: usize,
    /// The setting that determines `total`.
    total_setting: &'static str,
    per_address: usize,
    connections: Mutex<Connections>,
}

/// The unit for the choice of the connection to replace: a site of IPv6 has thousands of networks.
fn site_of(address: IpAddr) -> IpAddr {
    match network_of(address) {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - SITE_BITS)))),
        v4 => v4,
    }
}

impl ConnectionLimiter {
    pub(crate) fn new(total: usize, total_setting: &'static str, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, total_setting, per_address, connections: Mutex::default() })
    }

    /// The end of a connection because of the total limit.
    pub(crate) const fn too_many(&self, scope: &'static str) -> Disconnect {
        Disconnect::TooManyConnections { scope, limit: self.total, setting: self.total_setting }
    }

    /// Admits a connection until the ticket is dropped.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Ticket, Disconnect> {
        let (site, network) = (site_of(address), network_of(address));
        let mut connections = self.connections.lock();
        let of_site = connections.by_site.get(&site).map_or(&[][..], Vec::as_slice);
        let count = of_site.len();
        if of_site.iter().filter(|entry| entry.network == network).count() >= self.per_address {
            let (limit, setting) = (self.per_address, "transport.limits.connections_per_address");
            return Err(Disconnect::TooManyConnections { scope: "from this address", limit, setting });
        }
        if connections.active >= self.total && !connections.replace_one(count) {
            return Err(self.too_many("in total"));
        }
        connections.active += 1;
        connections.last_number += 1;
        let (number, revoked) = (connections.last_number, CancellationToken::new());
        let entry = Entry { number, network, revoked: revoked.clone() };
        connections.by_site.entry(site).or_default().push(entry);
        Ok(Ticket { limiter: Arc::clone(self), site, number, revoked })
    }

    /// The number of open connections.
    pub(crate) fn connections(&self) -> usize {
        let connections = self.connections.lock();
        connections.active + connections.closing
    }
}

impl Connections {
    /// Revokes a connection of the site with the most connections, if that site has more than one connection more than the
    /// new connection's site, which has `count`. Returns whether it has revoked one.
    fn replace_one(&mut self, count: usize) -> bool {
        if self.closing >= MAX_CLOSING {
            return false;
        }
        let largest = self.by_site.values_mut().max_by_key(|entries| entries.len());
        let Some(entry) = largest.filter(|entries| entries.len() > count + 1).and_then(Vec::pop) else {
            return false;
        };
        entry.revoked.cancel();
        self.active -= 1;
        self.closing += 1;
        true
    }

    fn remove(&mut self, site: IpAddr, number: u64) {
        let entry = self.by_site.get_mut(&site).and_then(|entries| {
            let at = entries.iter().position(|entry| entry.number == number)?;
            Some(entries.remove(at))
        });
        match entry {
            Some(_) => self.active -= 1,
            None => self.closing -= 1,
        }
        if self.by_site.get(&site).is_some_and(Vec::is_empty) {
            self.by_site.remove(&site);
        }
    }
}

/// An admitted connection.
#[derive(Debug)]
pub(crate) struct Ticket {
    limiter: Arc<ConnectionLimiter>,
    site: IpAddr,
    number: u64,
    revoked: CancellationToken,
}

impl Ticket {
    /// Waits until another connection replaces this one.
    pub(crate) async fn revoked(&self) {
        self.revoked.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.limiter.connections.lock().remove(self.site, self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_revoked(ticket: &Ticket) -> bool {
        ticket.revoked().now_or_never().is_some()
    }

    #[test]
    fn both_limits_apply_until_a_ticket_is_dropped() {
        let limiter = ConnectionLimiter::new(3, "setting", 2);
        let first = limiter.admit(address("10.0.0.1")).unwrap();
        let _second = limiter.admit(address("::ffff:10.0.0.1")).unwrap();
        let refused = limiter.admit(address("10.0.0.1"));
        assert!(matches!(
            refused,
            Err(Disconnect::TooManyConnections { scope: "from this address", limit: 2, .. })
        ));
        let _third = limiter.admit(address("2001:db8::1")).unwrap();
        let refused = limiter.admit(address("2001:db8::2:1"));
        let reason = refused.unwrap_err().to_string();
        assert_eq!(reason, "too many connections in total; the limit is 3 (setting)");
        drop(first);
        let _again = limiter.admit(address("2001:db8::2:1")).unwrap();
        assert_eq!(limiter.connections(), 3);
        assert_eq!(limiter.connections.lock().by_site.len(), 2, "an IPv6 network is one address");
    }

    #[test]
    fn address_with_few_connections_replaces_another() {
        let limiter = ConnectionLimiter::new(6, "setting", 4);
        let from = |last: u8| limiter.admit(IpAddr::from([10, 0, 0, last]));
        let held: Vec<_> = [1, 1, 1, 2, 2, 2].into_iter().map(|last| from(last).unwrap()).collect();
        assert!(from(1).is_err(), "no address has more");
        let modest = from(3).unwrap();
        let revoked: Vec<_> = (0..6).filter(|&at| is_revoked(&held[at])).collect();
        assert!(revoked == [2] || revoked == [5], "{revoked:?} are not the newest of an address");
        let second = from(3).unwrap();
        assert!(from(3).is_err(), "all addresses have two");
        assert!(from(4).is_ok_and(|ticket| !is_revoked(&ticket)));
        drop((modest, second));
        drop(held);
        assert_eq!(limiter.connections(), 0);
        let connections = limiter.connections.lock();
        assert_eq!((connections.active, connections.closing, connections.by_site.len()), (0, 0, 0));
    }

    #[test]
    fn networks_of_an_ipv6_site_count_as_one_address() {
        let limiter = ConnectionLimiter::new(8, "setting", 4);
        let modest: Vec<_> = (0..3).map(|_| limiter.admit(address("10.0.0.1")).unwrap()).collect();
        let from_site = |network: u16| limiter.admit(format!("2001:db8:7:{network:x}::1").parse().unwrap());
        let greedy: Vec<_> = (0..5).map(|network| from_site(network).unwrap()).collect();
        assert!(matches!(from_site(5), Err(Disconnect::TooManyConnections { scope: "in total", .. })));
        assert!(!modest.iter().any(is_revoked));
        let another = limiter.admit(address("2001:db8:8::1")).unwrap();
        assert_eq!((modest.iter().filter(|at| is_revoked(at)).count(), is_revoked(&another)), (0, false));
        assert_eq!(greedy.iter().map(is_revoked).collect::<Vec<_>>(), [false, false, false, false, true]);
    }

    #[test]
    fn replaced_connections_still_open_are_bounded() {
        let limiter = ConnectionLimiter::new(200, "setting", 200);
        let held: Vec<_> = (0..200).map(|_| limiter.admit(address("10.0.0.1")).unwrap()).collect();
        let others: Vec<_> =
            (0..200).filter_map(|last: u8| limiter.admit(IpAddr::from([10, 0, 1, last])).ok()).collect();
        assert_eq!((others.len(), limiter.connections()), (MAX_CLOSING, 200 + MAX_CLOSING));
        drop(held);
        assert!(limiter.admit(address("10.0.0.1")).is_ok());
    }
}
