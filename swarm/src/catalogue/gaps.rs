//! The periods whose acknowledged writes the database may lack.
//!
//! A database loses writes if it is restored from an older copy, and if a power failure or a change to another server takes its
//! last seconds. The trackers regularly store the time. A gap lies between a stored time and the start of a tracker that finds
//! it, or the moment at which a running tracker finds an older time than before. Peers that wrote in a gap repeat their writes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use enjambre_core::UnixMillis;
use enjambre_core::protocol::message::{Gap, MAX_GAPS};

/// The largest expected difference between the clocks of trackers of one database.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// The record under `time`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRecord {
    /// The time. The database contains all writes until then.
    pub written: UnixMillis,
    /// The last gaps.
    pub gaps: Vec<Gap>,
}

/// The gaps that a tracker knows.
#[derive(Debug)]
pub struct Gaps {
    lease: Duration,
    /// The latest time that the database has contained.
    known: UnixMillis,
    gaps: Vec<Gap>,
}

impl Gaps {
    /// The gaps at the start of a tracker on a database with this record.
    pub fn new(lease: Duration, stored: &TimeRecord, now: UnixMillis) -> Self {
        let mut gaps = Self { lease, known: UnixMillis::default(), gaps: stored.gaps.clone() };
        gaps.add(stored.written, now);
        gaps
    }

    /// Compares the record of the database with the known time. Returns the record to store now.
    pub fn update(&mut self, stored: &TimeRecord, now: UnixMillis) -> TimeRecord {
        if stored.written < self.known {
            tracing::warn!("the database lacks recent writes, as after a restore; peers repeat them");
            self.add(stored.written, now);
        }
        for gap in &stored.gaps {
            if !self.gaps.contains(gap) {
                self.insert(*gap);
            }
        }
        // A time in the far future comes from a wrong clock.
        let is_possible = stored.written <= now + self.lease;
        let written = if is_possible { stored.written.max(now) } else { now };
        TimeRecord { written, gaps: self.gaps.clone() }
    }

    /// Records that the database contains this record.
    pub fn stored(&mut self, record: &TimeRecord) {
        self.known = record.written;
    }

    /// The last gaps.
    pub fn list(&self) -> &[Gap] {
        &self.gaps
    }

    fn add(&mut self, written: UnixMillis, now: UnixMillis) {
        self.known = written;
        // Otherwise the clock was set back.
        let until = if now >= written { now } else { written + self.lease };
        self.insert(Gap { after_ms: written - CLOCK_SKEW, until_ms: until });
    }

    fn insert(&mut self, gap: Gap) {
        self.gaps.push(gap);
        self.gaps.sort_by_key(|gap| gap.until_ms);
        let surplus = self.gaps.len().saturating_sub(MAX_GAPS);
        self.gaps.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn seconds(seconds: u64) -> UnixMillis {
        UnixMillis(seconds * 1000)
    }

    fn gap(after: u64, until: u64) -> Gap {
        Gap { after_ms: seconds(after), until_ms: seconds(until) }
    }

    #[test]
    fn start_and_older_database_are_gaps() {
        let stored = TimeRecord { written: seconds(100), gaps: Vec::new() };
        let mut gaps = Gaps::new(LEASE, &stored, seconds(1000));
        assert_eq!(gaps.list(), [gap(95, 1000)]);
        let record = gaps.update(&stored, seconds(1005));
        assert_eq!(record, TimeRecord { written: seconds(1005), gaps: vec![gap(95, 1000)] });
        gaps.stored(&record);
        gaps.update(&record, seconds(1010));
        assert_eq!(gaps.list(), [gap(95, 1000)]);
        // Restored beneath the running tracker.
        let record = gaps.update(&stored, seconds(2000));
        assert_eq!(record.gaps, [gap(95, 1000), gap(95, 2000)]);
        // Not yet stored.
        assert_eq!(gaps.update(&stored, seconds(2005)).gaps.len(), 2);
    }

    #[test]
    fn gap_that_another_tracker_found_is_known() {
        let mut gaps =
            Gaps::new(LEASE, &TimeRecord { written: seconds(990), gaps: Vec::new() }, seconds(1000));
        let other = TimeRecord { written: seconds(1120), gaps: vec![gap(300, 1100)] };
        let record = gaps.update(&other, seconds(1100));
        assert_eq!(record, TimeRecord { written: seconds(1120), gaps: vec![gap(985, 1000), gap(300, 1100)] });
        assert_eq!(gaps.list(), record.gaps);
    }

    #[test]
    fn clock_that_was_set_back_does_not_hide_a_gap() {
        let stored = TimeRecord { written: seconds(1000), gaps: Vec::new() };
        let mut gaps = Gaps::new(LEASE, &stored, seconds(10));
        assert_eq!(gaps.list(), [gap(995, 1030)]);
        let record = gaps.update(&stored, seconds(20));
        assert_eq!(record.written, seconds(20), "later gaps are found again");
    }

    #[test]
    fn last_gaps_are_kept() {
        let mut record = TimeRecord::default();
        for n in 1..=20 {
            let mut gaps = Gaps::new(LEASE, &record, seconds(n * 100));
            record = gaps.update(&record, seconds(n * 100));
        }
        assert_eq!(record.gaps.len(), MAX_GAPS);
        assert_eq!(record.gaps.last(), Some(&gap(1895, 2000)));
    }
}
