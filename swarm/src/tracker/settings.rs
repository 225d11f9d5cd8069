//! Settings of a tracker.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::catalogue::CatalogueRules;
use crate::catalogue::leases::LeaseRules;
use crate::rate_limit::gcra::RateLimit;

/// The settings of a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerSettings {
    /// The time that a peer counts as alive after a renewal. Peers renew three times per lease.
    pub lease: Duration,
    /// The time that a file without living providers is listed.
    pub file_retention: Duration,
    /// The time that the claims of a peer that is not alive are stored for its return.
    pub claim_retention: Duration,
    /// The maximum time between two writes of renewals.
    pub flush: Duration,
    /// The time between two sweeps for expired peers and claims.
    pub sweep: Duration,
    /// The maximum number of peers, including peers that are not alive but whose claims are stored. With several trackers on
    /// one database each uses its own count, which includes the additions of the others up to its last full count.
    pub max_peers: u64,
    /// The maximum number of versions of names, counted in the same way. A version takes about 1 KiB of the database.
    pub max_versions: u64,
    /// The number of new sessions from one address at once.
    pub sessions_per_address: NonZeroU32,
    /// The memory in bytes for answers to lookups without the database.
    pub lookup_cache: usize,
}

/// The default of [`TrackerSettings::sessions_per_address`].
pub const DEFAULT_SESSIONS_PER_ADDRESS: NonZeroU32 = NonZeroU32::MIN.saturating_add(127);
/// The time after which an address that has opened as many sessions as allowed may open as many again.
const SESSIONS_PERIOD: Duration = Duration::from_secs(128);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for TrackerSettings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            file_retention: 30 * DAY,
            claim_retention: DAY,
            flush: Duration::from_secs(5),
            sweep: Duration::from_secs(60),
            max_peers: 100_000,
            max_versions: 10_000_000,
            sessions_per_address: DEFAULT_SESSIONS_PER_ADDRESS,
            lookup_cache: 32 << 20,
        }
    }
}

impl TrackerSettings {
    /// The time between two writes of renewals: at most a sixth of a lease.
    pub fn flush_interval(&self) -> Duration {
        self.flush.min(self.lease / 6).max(Duration::from_millis(10))
    }

    /// The limit of new sessions per address.
    pub fn session_limit(&self) -> RateLimit {
        let burst = self.sessions_per_address.get();
        RateLimit { burst, interval: SESSIONS_PERIOD / burst }
    }

    /// The time between two searches for expired files.
    pub fn expiry_interval(&self) -> Duration {
        (self.file_retention / 720).clamp(Duration::from_secs(1), Duration::from_secs(60 * 60))
    }

    /// The rules of the catalogue.
    pub fn rules(&self) -> CatalogueRules {
        let lease = self.lease.max(Duration::from_millis(1));
        CatalogueRules {
            leases: LeaseRules {
                lease,
                retention: self.claim_retention.max(lease),
                settle: lease.saturating_mul(4).max(Duration::from_secs(60)),
            },
            cache_ttl: self.flush_interval().min(Duration::from_secs(5)),
            max_peers: self.max_peers,
            max_versions: self.max_versions,
            file_number_cache: self.lookup_cache / 8,
        }
    }

    /// The memory for cached lookups in bytes: the rest of the cache.
    pub fn lookup_cache_bytes(&self) -> usize {
        self.lookup_cache - self.lookup_cache / 8
    }
}
