//! Wall-clock time, replaceable in tests.

use std::fmt::Debug;
use std::time::SystemTime;

use crate::model::time::UnixMillis;

/// A source of wall-clock time.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Returns the current time.
    fn now(&self) -> UnixMillis;

    /// Returns the current time in milliseconds since 1970-01-01 UTC.
    fn now_ms(&self) -> u64 {
        self.now().get()
    }
}

/// The current time of the operating system in milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> u64 {
    SystemClock.now_ms()
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixMillis {
        UnixMillis::from_system(SystemTime::now())
    }
}
