//! How often something may be done: a supply that fills up again with time (the generic cell rate algorithm, ITU-T I.371).
//!
//! All that is remembered of a supply is when it is full again.

/// A supply of so many, and of one more in each interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CellRate {
    /// How many there may be at once.
    pub(crate) burst: u64,
    /// The time in milliseconds in which there is one more.
    pub(crate) interval: u64,
}

impl CellRate {
    /// Takes one of a supply that is full again at `full_at`: when it is so afterwards, which is to be remembered in any case, and
    /// in how many milliseconds there will be one where there was none.
    pub(crate) fn take(self, full_at: u64, now: u64) -> (u64, Result<(), u64>) {
        let room = now.saturating_add(self.burst.saturating_mul(self.interval));
        // A clock that was put back must not lock anybody out.
        let from = full_at.clamp(now, room);
        let taken = from.saturating_add(self.interval);
        match taken.saturating_sub(room) {
            0 => (taken, Ok(())),
            late => (from, Err(late)),
        }
    }
}
