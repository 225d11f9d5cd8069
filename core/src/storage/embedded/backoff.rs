//! The pauses between attempts to open a failed engine anew.
//!
//! They double as long as the engine keeps failing, and begin anew once it was open for as long as the longest of them. So
//! whatever fails, and however much works in between, the longest pause bounds how often an engine is opened.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    /// The next one.
    next: Duration,
    /// When the engine was opened that has not failed yet.
    open_since: Option<Instant>,
}

impl Backoff {
    pub(super) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, open_since: None }
    }

    /// The engine is open.
    pub(super) const fn opened(&mut self, now: Instant) {
        self.open_since = Some(now);
    }

    /// The engine failed, or could not be opened: how long to wait before the next attempt.
    pub(super) fn pause(&mut self, now: Instant) -> Duration {
        if self.open_since.take().is_some_and(|since| now.duration_since(since) >= self.longest) {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_double_up_to_the_longest_while_the_engine_cannot_be_opened() {
        let (mut backoff, now) = (Backoff::new(FIRST, LONGEST), Instant::now());
        let pauses: Vec<u128> = (0..9).map(|_| backoff.pause(now).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn an_engine_that_worked_for_long_begins_with_the_first_pause_and_another_one_does_not() {
        let (mut backoff, mut now) = (Backoff::new(FIRST, LONGEST), Instant::now());
        for (open_for, expected) in
            [(LONGEST, FIRST), (LONGEST / 2, FIRST * 2), (Duration::ZERO, FIRST * 4), (LONGEST, FIRST)]
        {
            backoff.opened(now);
            now += open_for;
            assert_eq!(backoff.pause(now), expected, "after {open_for:?}");
        }
        // While it cannot be opened, time alone makes nothing better.
        assert_eq!(backoff.pause(now + 10 * LONGEST), FIRST * 2);
    }

    #[test]
    fn however_long_it_works_in_between_it_is_not_opened_more_often_than_the_longest_pause_allows() {
        for open_for in [Duration::ZERO, LONGEST / 3, LONGEST] {
            let begin = Instant::now();
            let (mut backoff, mut now) = (Backoff::new(FIRST, LONGEST), begin);
            for _ in 0..1000 {
                backoff.opened(now);
                now += open_for;
                now += backoff.pause(now);
            }
            assert!(now - begin >= LONGEST * 990, "after {open_for:?}: {:?}", now - begin);
        }
    }
}
