//! Periods whose writes a catalogue may lack.

use serde::{Deserialize, Serialize};

use super::time::UnixMillis;

/// A period whose acknowledged writes a catalogue may lack. A database that was restored from an older copy, or lost its last
/// seconds in a power failure, lacks them. A peer that wrote in this period opens a new session, announces all its files, and
/// repeats the publications that were acknowledged then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// All writes until this time, by the clock of the tracker, are stored.
    pub after_ms: UnixMillis,
    /// The end of the period.
    pub until_ms: UnixMillis,
}

impl Gap {
    /// Returns whether a write that was acknowledged at this time, by the clock of the tracker, may be missing.
    pub fn contains(&self, at: UnixMillis) -> bool {
        self.after_ms < at && at <= self.until_ms
    }
}
