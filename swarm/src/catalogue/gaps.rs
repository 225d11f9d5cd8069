//! The periods whose acknowledged writes the database may lack.
//!
//! A database loses writes if it is restored from an older copy, and if a power failure or a change to another server takes its
//! last seconds. The trackers regularly store the time. A gap lies between a stored time and the start of a tracker that finds
//! it, or the moment at which a running tracker finds an older time than before. Peers that wrote in a gap repeat their writes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use enjambre_core::protocol::message::MAX_GAPS;
use enjambre_core::{Gap, UnixMillis};

/// The largest difference between the clocks of the trackers of one database, and between the clock of a tracker and the
/// estimates of its peers.
const CLOCK_SKEW: Duration = Duration::from_secs(10);

/// The record under `time`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRecord {
    /// The number of times that the record was written.
    pub number: u64,
    /// The time of the last one. The database contains all writes until then.
    pub written: UnixMillis,
    /// The last gaps.
    pub gaps: Vec<Gap>,
}

/// The gaps that a tracker knows.
#[derive(Debug)]
pub struct Gaps {
    /// The highest number of the record that the database has contained.
    known: u64,
    gaps: Vec<Gap>,
}

impl Gaps {
    /// The gaps at the start of a tracker on a database with this record.
    pub fn new(stored: &TimeRecord, now: UnixMillis) -> Self {
        let mut gaps = Self { known: stored.number, gaps: stored.gaps.clone() };
        gaps.add(stored, now);
        gaps
    }

    /// Compares the record of the database with the known one. Returns the record to store now. `is_back`: the database was
    /// unreachable until now, so it may be that of another server.
    pub fn update(&mut self, stored: &TimeRecord, is_back: bool, now: UnixMillis) -> TimeRecord {
        for gap in &stored.gaps {
            self.insert(*gap);
        }
        if is_back || stored.number < self.known {
            self.add(stored, now);
        }
        self.known = stored.number;
        TimeRecord { number: stored.number.saturating_add(1), written: now, gaps: self.gaps.clone() }
    }

    /// Records that the database contains this record.
    pub fn stored(&mut self, record: &TimeRecord) {
        self.known = record.number;
    }

    /// The last gaps.
    pub fn list(&self) -> &[Gap] {
        &self.gaps
    }

    fn add(&mut self, stored: &TimeRecord, now: UnixMillis) {
        // The clock may have been set back since.
        let until = now.max(stored.written);
        self.insert(Gap { after_ms: stored.written - CLOCK_SKEW, until_ms: until + CLOCK_SKEW });
    }

    /// Adds a gap. Overlapping ones, as of a tracker that is restarted repeatedly, become one.
    fn insert(&mut self, mut gap: Gap) {
        let is_separate = |other: &Gap| other.until_ms < gap.after_ms || gap.until_ms < other.after_ms;
        let overlapping: Vec<Gap> = self.gaps.extract_if(.., |other| !is_separate(other)).collect();
        for other in overlapping {
            gap.after_ms = gap.after_ms.min(other.after_ms);
            gap.until_ms = gap.until_ms.max(other.until_ms);
        }
        self.gaps.push(gap);
        self.gaps.sort_by_key(|gap| gap.until_ms);
        let surplus = self.gaps.len().saturating_sub(MAX_GAPS);
        self.gaps.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> UnixMillis {
        UnixMillis(seconds * 1000)
    }

    fn gap(after: u64, until: u64) -> Gap {
        Gap { after_ms: seconds(after), until_ms: seconds(until) }
    }

    fn record(number: u64, written: u64) -> TimeRecord {
        TimeRecord { number, written: seconds(written), gaps: Vec::new() }
    }

    #[test]
    fn start_and_older_database_are_gaps() {
        let old = record(1, 100);
        let mut gaps = Gaps::new(&old, seconds(1000));
        assert_eq!(gaps.list(), [gap(90, 1010)]);
        let new = gaps.update(&old, false, seconds(1005));
        assert_eq!(new, TimeRecord { gaps: vec![gap(90, 1010)], ..record(2, 1005) });
        gaps.stored(&new);
        assert_eq!(gaps.update(&new, false, seconds(1010)).gaps, [gap(90, 1010)]);
        // Restored beneath the running tracker.
        assert_eq!(gaps.update(&record(1, 1003), false, seconds(2000)).gaps, [gap(90, 2010)]);
    }

    #[test]
    fn tracker_that_only_reads_finds_an_older_database() {
        let mut gaps = Gaps::new(&record(1, 100), seconds(200));
        gaps.update(&record(9, 1000), false, seconds(1000));
        assert_eq!(gaps.update(&record(8, 980), false, seconds(1005)).gaps, [gap(90, 210), gap(970, 1015)]);
    }

    #[test]
    fn return_of_the_database_is_a_gap() {
        let mut gaps = Gaps::new(&record(1, 100), seconds(200));
        let stored = record(2, 995);
        gaps.update(&stored, false, seconds(995));
        assert_eq!(gaps.update(&stored, true, seconds(1100)).gaps, [gap(90, 210), gap(985, 1110)]);
    }

    #[test]
    fn gap_that_another_tracker_found_is_known() {
        let mut gaps = Gaps::new(&record(1, 990), seconds(1000));
        let other = TimeRecord { gaps: vec![gap(300, 400)], ..record(5, 1100) };
        assert_eq!(gaps.update(&other, false, seconds(1100)).gaps, [gap(300, 400), gap(980, 1010)]);
        assert_eq!(Gaps::new(&other, seconds(2000)).list(), [gap(300, 400), gap(1090, 2010)]);
    }

    #[test]
    fn clocks_that_differ_cause_no_gaps() {
        let start = record(1, 1000);
        let mut trackers = [Gaps::new(&start, seconds(1000)), Gaps::new(&start, seconds(1100))];
        let mut stored = start;
        for n in 0..20 {
            for (tracker, ahead) in trackers.iter_mut().zip([0, 100]) {
                stored = tracker.update(&stored, false, seconds(1000 + 5 * n + ahead));
                tracker.stored(&stored);
            }
        }
        assert_eq!(stored.gaps, [gap(990, 1110)]);
    }

    #[test]
    fn clock_that_was_set_back_does_not_hide_a_gap() {
        assert_eq!(Gaps::new(&record(1, 1000), seconds(10)).list(), [gap(990, 1010)]);
    }

    #[test]
    fn last_gaps_are_kept() {
        let mut stored = TimeRecord::default();
        for n in 1..=20 {
            stored = Gaps::new(&stored, seconds(n * 100)).update(&stored, false, seconds(n * 100 + 50));
        }
        assert_eq!(stored.gaps.len(), MAX_GAPS);
        assert_eq!(stored.gaps.last(), Some(&gap(1940, 2010)));
    }
}
