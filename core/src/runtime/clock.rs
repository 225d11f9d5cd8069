//! Wall-clock time, replaceable in tests.

use std::fmt::Debug;
use std::time::SystemTime;

use crate::model::time::UnixMillis;

/// A source of wall-clock time.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Returns the current time.
    fn now(&self) -> UnixMillis;
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixMillis {
        UnixMillis::from_system(SystemTime::now())
    }
}
