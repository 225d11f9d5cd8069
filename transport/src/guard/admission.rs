//! How many connections are accepted: in all, and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

use super::cutoff::CutOff;

#[derive(Debug, Default)]
struct Count {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Counts the accepted connections of all listeners.
#[derive(Debug)]
pub(crate) struct Admission {
    in_all: usize,
    per_address: usize,
    count: Mutex<Count>,
}

/// An IPv6 host commands a whole /64 network, so that is what counts as its address.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

impl Admission {
    pub(crate) fn new(in_all: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { in_all, per_address, count: Mutex::default() })
    }

    /// Admits a connection until the ticket is dropped.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Ticket, CutOff> {
        let address = counted_as(address);
        let mut count = self.count.lock();
        if count.all >= self.in_all {
            return Err(CutOff::TooMany("in all"));
        }
        let from_here = count.by_address.entry(address).or_default();
        if *from_here >= self.per_address {
            return Err(CutOff::TooMany("from this address"));
        }
        *from_here += 1;
        count.all += 1;
        Ok(Ticket { admission: Arc::clone(self), address })
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.count.lock().all
    }
}

/// One admitted connection.
#[derive(Debug)]
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut count = self.admission.count.lock();
        count.all -= 1;
        if let Some(from_here) = count.by_address.get_mut(&self.address) {
            *from_here -= 1;
            if *from_here == 0 {
                count.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_caps_hold_and_a_dropped_ticket_makes_room() {
        let admission = Admission::new(3, 2);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = admission.admit(address("10.0.0.1")).unwrap();
        let _second = admission.admit(address("::ffff:10.0.0.1")).unwrap();
        assert!(matches!(admission.admit(address("10.0.0.1")), Err(CutOff::TooMany("from this address"))));
        let _third = admission.admit(address("2001:db8::1")).unwrap();
        assert!(matches!(admission.admit(address("10.0.0.2")), Err(CutOff::TooMany("in all"))));
        drop(first);
        let _again = admission.admit(address("2001:db8::2:1")).unwrap();
        assert_eq!(admission.connections(), 3);
        assert_eq!(admission.count.lock().by_address.len(), 2, "one IPv6 network is one address");
    }
}
