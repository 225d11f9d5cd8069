//! Entries of the database that cannot be read. One of them must keep nobody from all others, so it is passed over,
//! counted, and told of now and then: look-ups may meet the same one many times a second.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::error::StorageError;

/// How often damage is told of at most, in milliseconds.
const TOLD_EVERY_MS: u64 = 60_000;

/// What was met so far.
#[derive(Debug, Default)]
pub(super) struct Damage {
    met: AtomicU64,
    /// From when on it may be told of again.
    quiet_until: AtomicU64,
}

impl Damage {
    /// What was read; none where it is damaged.
    pub(super) fn pass_over<T>(
        &self,
        read: Result<T, StorageError>,
        now: u64,
    ) -> Result<Option<T>, StorageError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error @ StorageError::Corrupt { .. }) => {
                let met = self.met.fetch_add(1, Ordering::Relaxed) + 1;
                if self.may_tell(now) {
                    tracing::warn!(%error, met, "a damaged entry of the catalogue is passed over");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// How often a damaged entry was met.
    pub(super) fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }

    fn may_tell(&self, now: u64) -> bool {
        let until = now.saturating_add(TOLD_EVERY_MS);
        // A clock that was put back must not silence it for long.
        let next = |quiet| (quiet <= now || quiet > until).then_some(until);
        self.quiet_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_counted_each_time_and_told_of_once_a_minute() {
        let damage = Damage::default();
        let read = |result| damage.pass_over::<u8>(result, 5).ok();
        assert_eq!(read(Ok(1)), Some(Some(1)));
        assert_eq!(read(Err(StorageError::corrupt("what"))), Some(None));
        assert_eq!(read(Err(StorageError::corrupt("what"))), Some(None));
        assert_eq!(read(Err(StorageError::Closed)), None, "this is no damage");
        assert_eq!(damage.met(), 2);
        let told = Damage::default();
        let times = [5, 6, 60_004, 60_005, 60_006, 10, 11];
        assert_eq!(times.map(|now| told.may_tell(now)), [true, false, false, true, false, true, false]);
    }
}
