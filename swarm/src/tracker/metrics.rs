//! Metrics of a tracker.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use enjambre_core::metrics::{Counter, Histogram};

use crate::catalogue::sweep::Swept;

/// The value of a number that is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// The metrics of a tracker.
#[derive(Debug)]
pub struct TrackerMetrics {
    /// Lookups that were answered from memory.
    pub cached_lookups: Counter,
    /// The durations of the other lookups of files and providers.
    pub lookups: Histogram,
    /// Acknowledged renewals of leases, except those of the store of this tracker.
    pub renewals: Counter,
    /// Failed writes of renewals, which are retried.
    pub failed_flushes: Counter,
    /// Completed peer sweeps.
    pub sweeps: Counter,
    /// Failed peer sweeps.
    pub failed_sweeps: Counter,
    /// Peers that were removed because they stayed away.
    pub removed_peers: Counter,
    /// Files that were removed because they had no providers.
    pub expired_files: Counter,
    online_peers: AtomicU64,
}

impl Default for TrackerMetrics {
    fn default() -> Self {
        Self {
            cached_lookups: Counter::default(),
            lookups: Histogram::default(),
            renewals: Counter::default(),
            failed_flushes: Counter::default(),
            sweeps: Counter::default(),
            failed_sweeps: Counter::default(),
            removed_peers: Counter::default(),
            expired_files: Counter::default(),
            online_peers: AtomicU64::new(UNKNOWN),
        }
    }
}

impl TrackerMetrics {
    /// Returns the number of online peers as of the last sweep of this tracker, or `None` before the first one.
    pub fn online_peers(&self) -> Option<u64> {
        Some(self.online_peers.load(Relaxed)).filter(|peers| *peers != UNKNOWN)
    }

    pub(super) fn record_sweep(&self, swept: &Swept) {
        self.sweeps.add(1);
        self.removed_peers.add(swept.peers);
        self.online_peers.store(swept.alive, Relaxed);
    }
}
