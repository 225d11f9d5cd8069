//! Periodic tasks.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

const MIN_PERIOD: Duration = Duration::from_millis(10);

/// An interval whose first tick is immediate and which never catches up on missed ticks.
pub(super) fn ticker(period: Duration) -> Interval {
    let mut ticks = interval(period.max(MIN_PERIOD));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
