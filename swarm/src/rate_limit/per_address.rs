//! Rate limits per IP address, for example of new sessions and failed join attempts.
//!
//! Each session writes to the database, and each new peer occupies an entry until it expires. So the rate per address is
//! limited ([`super::gcra`]). The burst lets all peers behind a shared address reconnect at once and is too small to fill
//! the table of peers. Loopback addresses are limited too, because other users of the host and proxies connect from them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;

use super::gcra::RateLimit;
use enjambre_core::UnixMillis;
use enjambre_core::model::network::network_of;

/// The maximum number of addresses with state.
const MAX_ADDRESSES: usize = 10_000;

/// A [`RateLimit`] for each address. Connections within the process have no address and are not limited.
#[derive(Debug)]
pub struct AddressRateLimit {
    rate: RateLimit,
    /// The state of each address.
    full_at: Mutex<HashMap<IpAddr, UnixMillis>>,
}

impl AddressRateLimit {
    /// A limit with this rate per address.
    pub fn new(rate: RateLimit) -> Self {
        Self { rate, full_at: Mutex::default() }
    }

    /// Returns whether a permit is available, or else the time until one is.
    pub fn peek(&self, address: Option<IpAddr>, now: UnixMillis) -> Result<(), Duration> {
        let Some(address) = address else { return Ok(()) };
        match self.full_at.lock().get(&network_of(address)) {
            Some(full_at) => self.rate.take(*full_at, now).1,
            None => Ok(()),
        }
    }

    /// Takes a permit at the time `now`, or else returns the time until one is available.
    pub fn take(&self, address: Option<IpAddr>, now: UnixMillis) -> Result<(), Duration> {
        let Some(address) = address else { return Ok(()) };
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

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 128;
    const RATE: RateLimit = RateLimit { burst: BURST, interval: Duration::from_secs(1) };

    #[test]
    fn peek_takes_no_permit() {
        let limit = AddressRateLimit::new(RateLimit { burst: 2, interval: Duration::from_millis(10) });
        let at = Some(IpAddr::from([10, 0, 0, 1]));
        for _ in 0..5 {
            assert_eq!(limit.peek(at, UnixMillis(0)), Ok(()));
        }
        limit.take(at, UnixMillis(0)).unwrap();
        limit.take(at, UnixMillis(0)).unwrap();
        let wait = Duration::from_millis(6);
        assert_eq!((limit.peek(at, UnixMillis(4)), limit.take(at, UnixMillis(4))), (Err(wait), Err(wait)));
        assert_eq!(limit.peek(at, UnixMillis(10)), Ok(()));
    }

    #[test]
    fn each_network_has_its_own_refilling_limit() {
        let limit = AddressRateLimit::new(RATE);
        let at = |text: &str| Some(text.parse::<IpAddr>().unwrap());
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
    fn loopback_addresses_are_limited_one_by_one() {
        let limit = AddressRateLimit::new(RATE);
        for text in ["127.0.0.1", "127.0.0.2", "::1"] {
            let at = Some(text.parse::<IpAddr>().unwrap());
            for _ in 0..BURST {
                limit.take(at, UnixMillis(5000)).unwrap();
            }
            assert_eq!(limit.take(at, UnixMillis(5000)), Err(RATE.interval), "{text}");
        }
        assert!(limit.take(Some("::ffff:127.0.0.1".parse().unwrap()), UnixMillis(5000)).is_err());
    }

    #[test]
    fn number_of_addresses_is_bounded() {
        let limit = AddressRateLimit::new(RATE);
        for n in 0..3 * MAX_ADDRESSES as u32 {
            limit.take(Some(IpAddr::from((n + (10 << 24)).to_be_bytes())), UnixMillis(0)).unwrap();
        }
        assert!(limit.full_at.lock().len() <= MAX_ADDRESSES);
    }
}
