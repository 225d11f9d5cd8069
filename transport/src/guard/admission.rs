//! How many connections are accepted: in all, and from one address.
//!
//! Where all places are taken, an address with few connections takes one from the address that has the most: somebody with
//! many connections fills every place, but keeps nobody out who comes from elsewhere. What is closed then is the newest
//! connection, for the older ones are more likely to be in use.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use enjambre_core::transport::network_of;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::cutoff::CutOff;

/// How many connections may have lost their places and be still open.
pub(super) const LEAVING: usize = 64;
/// Sites of IPv6 get so many bits of an address, as RFC 6177 has it: enough for 65,536 networks.
const SITE_BITS: u32 = 48;

#[derive(Debug, Default)]
struct Places {
    taken: usize,
    /// By site, the oldest first.
    by_site: HashMap<IpAddr, Vec<Place>>,
    /// Connections that lost theirs and are being closed.
    leaving: usize,
    next: u64,
}

#[derive(Debug)]
struct Place {
    number: u64,
    /// What counts as one address.
    network: IpAddr,
    lost: CancellationToken,
}

/// Counts the accepted connections of all listeners.
#[derive(Debug)]
pub(crate) struct Admission {
    in_all: usize,
    per_address: usize,
    places: Mutex<Places>,
}

/// What counts as one address where it is chosen who loses a place: who has a site of IPv6 has thousands of networks.
fn site_of(address: IpAddr) -> IpAddr {
    match network_of(address) {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - SITE_BITS)))),
        v4 => v4,
    }
}

impl Admission {
    pub(crate) fn new(in_all: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { in_all, per_address, places: Mutex::default() })
    }

    /// Admits a connection until the ticket is dropped.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Ticket, CutOff> {
        let (site, network) = (site_of(address), network_of(address));
        let mut places = self.places.lock();
        let there = places.by_site.get(&site).map_or(&[][..], Vec::as_slice);
        let from_there = there.len();
        if there.iter().filter(|place| place.network == network).count() >= self.per_address {
            return Err(CutOff::TooMany("from this address"));
        }
        if places.taken >= self.in_all && !places.give_up_one(from_there) {
            return Err(CutOff::TooMany("in all"));
        }
        places.taken += 1;
        places.next += 1;
        let (number, lost) = (places.next, CancellationToken::new());
        places.by_site.entry(site).or_default().push(Place { number, network, lost: lost.clone() });
        Ok(Ticket { admission: Arc::clone(self), site, number, lost })
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        let places = self.places.lock();
        places.taken + places.leaving
    }
}

impl Places {
    /// Takes the place of a connection from the site that has the most, where that has more than one that has
    /// `from_there` would have with it. Whether it did.
    fn give_up_one(&mut self, from_there: usize) -> bool {
        if self.leaving >= LEAVING {
            return false;
        }
        let most = self.by_site.values_mut().max_by_key(|places| places.len());
        let Some(place) = most.filter(|places| places.len() > from_there + 1).and_then(Vec::pop) else {
            return false;
        };
        place.lost.cancel();
        self.taken -= 1;
        self.leaving += 1;
        true
    }

    fn leave(&mut self, site: IpAddr, number: u64) {
        let place = self.by_site.get_mut(&site).and_then(|places| {
            let at = places.iter().position(|place| place.number == number)?;
            Some(places.remove(at))
        });
        match place {
            Some(_) => self.taken -= 1,
            None => self.leaving -= 1,
        }
        if self.by_site.get(&site).is_some_and(Vec::is_empty) {
            self.by_site.remove(&site);
        }
    }
}

/// One admitted connection.
#[derive(Debug)]
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    site: IpAddr,
    number: u64,
    lost: CancellationToken,
}

impl Ticket {
    /// Returns when the place went to somebody else.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.places.lock().leave(self.site, self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn both_caps_hold_and_a_dropped_ticket_makes_room() {
        let admission = Admission::new(3, 2);
        let first = admission.admit(address("10.0.0.1")).unwrap();
        let _second = admission.admit(address("::ffff:10.0.0.1")).unwrap();
        assert!(matches!(admission.admit(address("10.0.0.1")), Err(CutOff::TooMany("from this address"))));
        let _third = admission.admit(address("2001:db8::1")).unwrap();
        assert!(matches!(admission.admit(address("2001:db8::2:1")), Err(CutOff::TooMany("in all"))));
        drop(first);
        let _again = admission.admit(address("2001:db8::2:1")).unwrap();
        assert_eq!(admission.connections(), 3);
        assert_eq!(admission.places.lock().by_site.len(), 2, "one IPv6 network is one address");
    }

    #[test]
    fn who_has_many_addresses_keeps_nobody_out_who_comes_from_another() {
        let admission = Admission::new(6, 4);
        let from = |last: u8| admission.admit(IpAddr::from([10, 0, 0, last]));
        let held: Vec<_> = [1, 1, 1, 2, 2, 2].into_iter().map(|last| from(last).unwrap()).collect();
        assert!(from(1).is_err(), "it has as many as anybody");
        let modest = from(3).unwrap();
        let lost = |ticket: &Ticket| ticket.lost().now_or_never().is_some();
        let losers: Vec<_> = (0..6).filter(|&at| lost(&held[at])).collect();
        assert!(losers == [2] || losers == [5], "{losers:?} are not the newest of an address");
        let second = from(3).unwrap();
        assert!(from(3).is_err(), "now all have two");
        assert!(from(4).is_ok_and(|ticket| !lost(&ticket)));
        drop((modest, second));
        drop(held);
        assert_eq!(admission.connections(), 0);
        let places = admission.places.lock();
        assert_eq!((places.taken, places.leaving, places.by_site.len()), (0, 0, 0));
    }

    #[test]
    fn who_has_a_site_of_ipv6_takes_no_place_of_who_has_fewer() {
        let admission = Admission::new(8, 4);
        let modest: Vec<_> = (0..3).map(|_| admission.admit(address("10.0.0.1")).unwrap()).collect();
        let from_site = |network: u16| admission.admit(format!("2001:db8:7:{network:x}::1").parse().unwrap());
        let greedy: Vec<_> = (0..5).map(|network| from_site(network).unwrap()).collect();
        assert!(matches!(from_site(5), Err(CutOff::TooMany("in all"))));
        let lost = |ticket: &Ticket| ticket.lost().now_or_never().is_some();
        assert!(!modest.iter().any(lost));
        let another = admission.admit(address("2001:db8:8::1")).unwrap();
        assert_eq!((modest.iter().filter(|at| lost(at)).count(), lost(&another)), (0, false));
        assert_eq!(greedy.iter().map(lost).collect::<Vec<_>>(), [false, false, false, false, true]);
    }

    #[test]
    fn those_that_lost_their_places_and_are_still_open_are_bounded() {
        let admission = Admission::new(200, 200);
        let held: Vec<_> = (0..200).map(|_| admission.admit(address("10.0.0.1")).unwrap()).collect();
        let others: Vec<_> =
            (0..200).filter_map(|last: u8| admission.admit(IpAddr::from([10, 0, 1, last])).ok()).collect();
        assert_eq!((others.len(), admission.connections()), (LEAVING, 200 + LEAVING));
        drop(held);
        assert!(admission.admit(address("10.0.0.1")).is_ok());
    }
}
