//! The schedule of a session: when to renew the lease and when to announce again.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use enjambre_core::protocol::message::SessionGrant;
use enjambre_core::runtime;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::{CatalogueId, SessionId, UnixMillis};

/// The maximum time between attempts to announce files that the catalogue does not contain.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(600);
/// The maximum time between two announcements of all offers, for what the gaps of a catalogue do not show, such as damaged
/// records. An unchanged offer costs the tracker only a read.
const FULL_ANNOUNCE_INTERVAL: Duration = Duration::from_secs(900);
/// Bounds of the renewal interval, so that a tracker can neither cause a flood of renewals nor prevent them.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_millis(50);
const MAX_RENEWAL_INTERVAL: Duration = Duration::from_secs(600);

/// The schedule of a session.
pub(super) struct Lease {
    pub(super) catalogue: CatalogueId,
    pub(super) session: SessionId,
    /// The time between renewals: a third of the lease.
    pub(super) interval: Duration,
    /// A time of the tracker's clock and when the request for it was sent.
    clock: (UnixMillis, Instant),
    /// The time of the next renewal.
    pub(super) renew_at: Instant,
    /// The time to send again what the catalogue did not contain or refused.
    pub(super) retry_at: Instant,
    retry_backoff: Backoff,
    /// The version of the outbox that was sent in this session.
    pub(super) outbox: Option<u64>,
    /// The time of the next announcement of all offers.
    pub(super) announce_all_at: Instant,
}

impl Lease {
    /// The schedule of a session that was requested at `start`.
    pub(super) fn new(catalogue: CatalogueId, grant: &SessionGrant, start: Instant) -> Self {
        let interval =
            Duration::from_millis(grant.lease_ms / 3).clamp(MIN_RENEWAL_INTERVAL, MAX_RENEWAL_INTERVAL);
        let now = Instant::now();
        let mut lease = Self {
            catalogue,
            session: grant.session,
            interval,
            clock: (grant.now_ms, start),
            renew_at: start + interval,
            retry_at: now,
            retry_backoff: Backoff::new(interval, MAX_RETRY_INTERVAL),
            outbox: None,
            announce_all_at: now,
        };
        lease.schedule_retry();
        lease.schedule_announce_all();
        lease
    }

    /// Records a renewal that was requested at `start` and took place at `now` by the tracker's clock.
    pub(super) fn renewed(&mut self, now: UnixMillis, start: Instant) {
        self.clock = (now, start);
        self.renew_at = start + self.interval;
    }

    /// The time of the tracker's clock, or a little later.
    pub(super) fn tracker_time(&self) -> UnixMillis {
        self.clock.0 + self.clock.1.elapsed()
    }

    pub(super) fn schedule_retry(&mut self) {
        self.retry_at = Instant::now() + self.retry_backoff.next_delay();
    }

    /// Schedules the next announcement of all offers, at a random time, so that peers which started together do not announce
    /// together.
    pub(super) fn schedule_announce_all(&mut self) {
        self.announce_all_at =
            Instant::now() + FULL_ANNOUNCE_INTERVAL.mul_f64(runtime::rng().random_range(0.5..1.0));
    }
}
