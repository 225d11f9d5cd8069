//! Rate limits per IP address, for example of new sessions and failed join attempts.
//!
//! Each session writes to the database, and each new peer occupies an entry until it expires. So the rate per address is
//! limited ([`super::gcra`]). The burst lets all peers behind a shared address reconnect at once and is too small to fill
//! the table of peers. Loopback is limited too, as one address, because other users of the host and proxies connect from it.
//!
//! The states are a sketch of fixed size (as a count-min sketch, Cormode and Muthukrishnan, 2005) and not a map, from which
//! a remote with many addresses could displace the states of others: each address has a slot in each of two rows, chosen by a
//! keyed hash, and gets a permit if one of its slots has one. So an address is limited too early only if other addresses use up
//! the permits of both of its slots.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use parking_lot::Mutex;

use super::gcra::RateLimit;
use enjambre_core::UnixMillis;
use enjambre_core::model::network::network_of;
use enjambre_core::runtime::Keys;

/// The number of slots in a row.
const SLOTS: usize = 1 << 14;
const ROWS: usize = 2;

/// A [`RateLimit`] for each address. Connections within the process have no address and are not limited.
#[derive(Debug)]
pub struct AddressRateLimit {
    rate: RateLimit,
    keys: Keys,
    /// The state of each slot. A number, because the system provides memory for zeros only when it is written.
    full_at: Mutex<[Box<[u64]>; ROWS]>,
}

impl AddressRateLimit {
    /// A limit with this rate per address.
    pub fn new(rate: RateLimit) -> Self {
        let row = || vec![0; SLOTS].into_boxed_slice();
        Self { rate, keys: Keys::default(), full_at: Mutex::new([row(), row()]) }
    }

    /// Takes a permit at the time `now`, or else returns the time until one is available.
    pub fn take(&self, address: Option<IpAddr>, now: UnixMillis) -> Result<(), Duration> {
        let Some(address) = address else { return Ok(()) };
        let hash = self.keys.hash_one(limited_unit(address));
        let rows = &mut *self.full_at.lock();
        let slots =
            rows.iter_mut().zip([hash, hash >> 32]).map(|(row, hash)| &mut row[hash as usize % SLOTS]);
        let permits = slots.map(|slot| {
            let (full_at, permit) = self.rate.take(UnixMillis(*slot), now);
            *slot = full_at.get();
            permit
        });
        // A permit is less than any wait.
        permits.min().unwrap_or(Ok(()))
    }
}

/// The addresses that have one limit together: those of an IPv6 network, and those of loopback.
fn limited_unit(address: IpAddr) -> IpAddr {
    if address.to_canonical().is_loopback() { Ipv4Addr::LOCALHOST.into() } else { network_of(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 128;
    const RATE: RateLimit = RateLimit { burst: BURST, interval: Duration::from_secs(1) };

    fn at(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn each_network_has_its_own_refilling_limit() {
        let limit = AddressRateLimit::new(RATE);
        let (one, other) = (at("2001:db8::1"), at("2001:db8:0:1::1"));
        for _ in 0..BURST {
            limit.take(one, UnixMillis(5000)).unwrap();
        }
        assert_eq!(limit.take(one, UnixMillis(5000)), Err(RATE.interval));
        assert_eq!(
            limit.take(at("2001:db8::2"), UnixMillis(5400)),
            Err(Duration::from_millis(600)),
            "same /64 network"
        );
        limit.take(other, UnixMillis(5000)).unwrap();
        limit.take(one, UnixMillis(6000)).unwrap();
        assert!(limit.take(one, UnixMillis(6000)).is_err());
        assert!(limit.take(one, UnixMillis(1000)).is_err(), "a clock that was set back grants no permit");
        limit.take(one, UnixMillis(2000)).unwrap();
        for _ in 0..2 * BURST {
            limit.take(None, UnixMillis(5000)).unwrap();
        }
    }

    #[test]
    fn loopback_addresses_have_one_limit_together() {
        let limit = AddressRateLimit::new(RATE);
        let loopback = ["127.0.0.1", "127.0.0.2", "127.251.9.9", "::1", "::ffff:127.0.0.1"];
        for n in 0..BURST as usize {
            limit.take(at(loopback[n % loopback.len()]), UnixMillis(5000)).unwrap();
        }
        for text in loopback {
            assert_eq!(limit.take(at(text), UnixMillis(5000)), Err(RATE.interval), "{text}");
        }
        limit.take(at("128.0.0.1"), UnixMillis(5000)).unwrap();
    }

    #[test]
    fn other_addresses_do_not_reset_a_limit() {
        let limit = AddressRateLimit::new(RATE);
        let exhausted = at("192.0.2.1");
        for _ in 0..BURST {
            limit.take(exhausted, UnixMillis(0)).unwrap();
        }
        for n in 0..100_000_u32 {
            let _ = limit.take(Some(IpAddr::from((n + (10 << 24)).to_be_bytes())), UnixMillis(0));
        }
        assert_eq!(limit.take(exhausted, UnixMillis(0)), Err(RATE.interval));
    }
}
