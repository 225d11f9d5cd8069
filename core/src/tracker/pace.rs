//! How fast new sessions may begin from one address.
//!
//! Each one writes to the database, and each new key takes one of the places for peers until it is forgotten. So
//! one address has a supply of sessions that fills up again with time (the generic cell rate algorithm, ITU-T
//! I.371): enough for all peers behind a shared address to come back at once, and too few to take every place.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;

/// The time in milliseconds in which one more session is allowed.
const INTERVAL: u64 = 1000;
/// The sessions that may begin at once.
const BURST: u64 = 128;
/// How many addresses are remembered.
const MAX_ADDRESSES: usize = 10_000;

/// When the supply of each address is full again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    full_at: Mutex<HashMap<IpAddr, u64>>,
}

impl Pace {
    /// Takes one of the address's supply at the time `now`, or says in how many milliseconds there will be one.
    /// This machine itself is not held up.
    pub(super) fn take(&self, address: Option<IpAddr>, now: u64) -> Result<(), u64> {
        let Some(address) = address.map(|address| address.to_canonical()).filter(|ip| !ip.is_loopback())
        else {
            return Ok(());
        };
        let mut full_at = self.full_at.lock();
        let key = network(address);
        if !full_at.contains_key(&key) && full_at.len() >= MAX_ADDRESSES {
            full_at.retain(|_, full| *full > now);
            if full_at.len() >= MAX_ADDRESSES {
                full_at.clear();
            }
        }
        let entry = full_at.entry(key).or_insert(now);
        // A clock that was put back must not lock anybody out.
        let from = (*entry).clamp(now, now.saturating_add(BURST * INTERVAL));
        let late = (from + INTERVAL).saturating_sub(now.saturating_add(BURST * INTERVAL));
        if late > 0 {
            *entry = from;
            return Err(late);
        }
        *entry = from + INTERVAL;
        Ok(())
    }
}

/// One customer usually has a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => {
            let prefix = u128::from(ip) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_supply_that_fills_up_again_and_others_have_theirs() {
        let pace = Pace::default();
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
        let pace = Pace::default();
        for n in 0..3 * MAX_ADDRESSES as u32 {
            pace.take(Some(IpAddr::from((n + (10 << 24)).to_be_bytes())), 0).unwrap();
        }
        assert!(pace.full_at.lock().len() <= MAX_ADDRESSES);
    }
}
