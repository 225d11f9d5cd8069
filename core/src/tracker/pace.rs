//! How fast something may be done from one address: sessions begun, invitations tried in vain.
//!
//! Each session writes to the database, and each new key takes one of the places for peers until it is forgotten. So
//! one address has a supply of sessions that fills up again with time ([`crate::cell_rate`]): enough for all peers behind a
//! shared address to come back at once, and too few to take every place.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;

use crate::cell_rate::CellRate;
use crate::transport::network_of;

/// How many addresses are remembered.
const MAX_ADDRESSES: usize = 10_000;

/// When the supply of each address is full again.
#[derive(Debug)]
pub(super) struct Pace {
    rate: CellRate,
    full_at: Mutex<HashMap<IpAddr, u64>>,
}

impl Pace {
    /// A supply of `burst` for each address, and of one more in each interval of so many milliseconds.
    pub(super) fn new(interval: u64, burst: u64) -> Self {
        Self { rate: CellRate { burst, interval }, full_at: Mutex::default() }
    }

    /// Whether there would be one to take, and otherwise in how many milliseconds.
    pub(super) fn look(&self, address: Option<IpAddr>, now: u64) -> Result<(), u64> {
        let Some(address) = held_up(address) else { return Ok(()) };
        match self.full_at.lock().get(&network_of(address)) {
            Some(full_at) => self.rate.take(*full_at, now).1,
            None => Ok(()),
        }
    }

    /// Takes one of the address's supply at the time `now`, or says in how many milliseconds there will be one.
    /// This machine itself is not held up.
    pub(super) fn take(&self, address: Option<IpAddr>, now: u64) -> Result<(), u64> {
        let Some(address) = held_up(address) else { return Ok(()) };
        let mut full_at = self.full_at.lock();
        let key = network_of(address);
        if !full_at.contains_key(&key) && full_at.len() >= MAX_ADDRESSES {
            full_at.retain(|_, full| *full > now);
            if full_at.len() >= MAX_ADDRESSES {
                full_at.clear();
            }
        }
        let entry = full_at.entry(key).or_insert(now);
        let (full_at, free) = self.rate.take(*entry, now);
        *entry = full_at;
        free
    }
}

fn held_up(address: Option<IpAddr>) -> Option<IpAddr> {
    address.map(|address| address.to_canonical()).filter(|ip| !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: u64 = 1000;
    const BURST: u64 = 128;

    #[test]
    fn looking_takes_nothing() {
        let pace = Pace::new(10, 2);
        let at = Some(IpAddr::from([10, 0, 0, 1]));
        for _ in 0..5 {
            assert_eq!(pace.look(at, 0), Ok(()));
        }
        pace.take(at, 0).unwrap();
        pace.take(at, 0).unwrap();
        assert_eq!((pace.look(at, 4), pace.take(at, 4)), (Err(6), Err(6)));
        assert_eq!(pace.look(at, 10), Ok(()));
    }

    #[test]
    fn an_address_has_a_supply_that_fills_up_again_and_others_have_theirs() {
        let pace = Pace::new(INTERVAL, BURST);
        let at = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let (one, other) = (at("2001:db8::1"), at("2001:db8:0:1::1"));
        for _ in 0..BURST {
            pace.take(one, 5000).unwrap();
        }
        assert_eq!(pace.take(one, 5000), Err(INTERVAL));
        assert_eq!(pace.take(at("2001:db8::2"), 5400), Err(600), "it is the same network");
        pace.take(other, 5000).unwrap();
        pace.take(one, 6000).unwrap();
        assert!(pace.take(one, 6000).is_err());
        assert!(pace.take(one, 1000).is_err(), "a clock that was put back gives no more");
        pace.take(one, 2000).unwrap();
        for _ in 0..2 * BURST {
            pace.take(at("::ffff:127.0.0.1"), 5000).unwrap();
            pace.take(None, 5000).unwrap();
        }
    }

    #[test]
    fn the_addresses_that_are_remembered_are_bounded() {
        let pace = Pace::new(INTERVAL, BURST);
        for n in 0..3 * MAX_ADDRESSES as u32 {
            pace.take(Some(IpAddr::from((n + (10 << 24)).to_be_bytes())), 0).unwrap();
        }
        assert!(pace.full_at.lock().len() <= MAX_ADDRESSES);
    }
}
