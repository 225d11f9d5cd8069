//! Entries of the database that cannot be read. A damaged entry must not block access to the others, so it is skipped, counted
//! and logged at a limited rate: lookups may meet the same entry many times a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use enjambre_core::{StorageError, UnixMillis};

/// The shortest time between two log messages.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Counter of damaged entries.
#[derive(Debug, Default)]
pub(super) struct Damage {
    count: AtomicU64,
    /// The earliest time of the next log message.
    quiet_until: AtomicU64,
}

impl Damage {
    /// Returns the value that was read, or `None` if it is damaged.
    pub(super) fn skip<T>(
        &self,
        read: Result<T, StorageError>,
        now: UnixMillis,
    ) -> Result<Option<T>, StorageError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error @ StorageError::Corrupt { .. }) => {
                let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
                if self.may_log(now) {
                    tracing::warn!(%error, count, "damaged catalogue entry skipped");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns how often a damaged entry was skipped.
    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn may_log(&self, now: UnixMillis) -> bool {
        let until = now + LOG_INTERVAL;
        // A clock that was set back must not suppress messages for long.
        let next = |quiet| (quiet <= now.get() || quiet > until.get()).then_some(until.get());
        self.quiet_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_counted_and_logged_once_a_minute() {
        let damage = Damage::default();
        let read = |result| damage.skip::<u8>(result, UnixMillis(5)).ok();
        assert_eq!(read(Ok(1)), Some(Some(1)));
        assert_eq!(read(Err(StorageError::corrupt("what"))), Some(None));
        assert_eq!(read(Err(StorageError::corrupt("what"))), Some(None));
        assert_eq!(read(Err(StorageError::Closed)), None, "this is no damage");
        assert_eq!(damage.count(), 2);
        let log = Damage::default();
        let times = [5, 6, 60_004, 60_005, 60_006, 10, 11];
        assert_eq!(
            times.map(|now| log.may_log(UnixMillis(now))),
            [true, false, false, true, false, true, false]
        );
    }
}
