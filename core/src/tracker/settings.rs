//! What can be set of a tracker.

use std::time::Duration;

use crate::catalogue::CatalogueRules;
use crate::catalogue::leases::LeaseRules;

/// The settings of a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerSettings {
    /// How long a peer counts as alive after a renewal. Peers renew three times in that time.
    pub lease: Duration,
    /// How long a file is listed that no living peer offers.
    pub forget: Duration,
    /// How long the claims of a peer that is not alive are kept for its return.
    pub retention: Duration,
    /// The longest time between two writes of renewals.
    pub flush: Duration,
    /// The time between two searches for peers and claims that are out of date.
    pub sweep: Duration,
    /// How many peers there may be, dead ones that are kept for their return included. Of several trackers on one database
    /// each goes by its own count, which knows what the others added up to the last time that it counted.
    pub max_peers: u64,
    /// How many versions of names there may be, counted in the same way; about 1 KiB of the database each.
    pub max_versions: u64,
    /// How many bytes of memory may be used to answer look-ups without the database.
    pub cache: usize,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for TrackerSettings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            forget: 30 * DAY,
            retention: DAY,
            flush: Duration::from_secs(5),
            sweep: Duration::from_secs(60),
            max_peers: 100_000,
            max_versions: 10_000_000,
            cache: 32 << 20,
        }
    }
}

/// A length of time in whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl TrackerSettings {
    /// The time between two writes of renewals: a sixth of a lease if that is shorter than what is set.
    pub fn flush_interval(&self) -> Duration {
        self.flush.min(self.lease / 6).max(Duration::from_millis(10))
    }

    /// The time between two searches for files that nobody offers any more.
    pub fn forget_interval(&self) -> Duration {
        (self.forget / 720).clamp(Duration::from_secs(1), Duration::from_secs(60 * 60))
    }

    /// What the catalogue decides by.
    pub fn rules(&self) -> CatalogueRules {
        let lease = millis(self.lease).max(1);
        CatalogueRules {
            leases: LeaseRules {
                lease,
                retention: millis(self.retention).max(lease),
                settle: lease.saturating_mul(4).max(60_000),
            },
            fresh: millis(self.flush_interval()).min(5000),
            max_peers: self.max_peers,
            max_versions: self.max_versions,
            cache: self.cache,
        }
    }
}
