//! The state machine of leases, without I/O: events and the time are its input, decisions its output.
//!
//! Each peer has one lease. Renewals are collected here and written in batches ([`LeaseTable::take`]), so that other
//! trackers on the same database see them. Each batch is followed by a stamp, the time of the last write of renewals. A
//! tracker that starts grants a grace period of one lease to the peers that were alive at the stamp. A tracker that lost
//! its database grants the same to the peers that were alive when it last reached the database, because meanwhile peers
//! could not renew, or the renewals at other trackers were not visible. States of a peer, by the time since its last
//! renewal:
//!
//! ```text
//! open_session, renew -> alive --one lease, or leave--> away --retention--> removed with its claims
//!                          ^--------renew, open_session---|
//! ```
//! (after `leave` only `open_session` leads back, because `leave` ends the session).

use std::time::Duration;

use super::layout::{LeaseRecord, PeerNumber};
use enjambre_core::runtime::HashMap;
use enjambre_core::{SessionId, UnixMillis};

/// The periods of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRules {
    /// The time for which a peer counts as alive after a renewal.
    pub lease: Duration,
    /// The time for which the claims of a peer that is away are kept.
    pub retention: Duration,
    /// The time after the start of a session at which the claims of earlier sessions of the peer are deleted.
    pub settle: Duration,
}

/// A renewal that is not stored yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The session that was renewed.
    pub session: SessionId,
    /// The time of the renewal.
    pub at: UnixMillis,
}

/// The data of one write of renewals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flush {
    /// The newest renewal of each peer.
    pub renewals: Vec<(PeerNumber, Renewal)>,
    /// The stamp: peers that were alive then have had time to renew since, or still have it.
    pub stamp: UnixMillis,
}

/// The action of a sweep for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No action.
    Keep,
    /// Delete the claims of earlier sessions.
    Settle,
    /// Delete its claims and then the peer.
    Remove,
}

#[derive(Debug, Clone, Copy)]
struct Grace {
    stamp: UnixMillis,
    until: UnixMillis,
}

impl Grace {
    /// Whether the period is active. An end much later than one lease from now means that the clock was set back; small
    /// adjustments are normal, and the caller may have read the clock before the period started.
    fn is_on(&self, now: UnixMillis, rules: LeaseRules) -> bool {
        now < self.until && self.until.saturating_since(now) <= rules.lease.saturating_mul(2)
    }
}

/// The state of leases in one tracker, in addition to the stored leases.
#[derive(Debug)]
pub struct LeaseTable {
    rules: LeaseRules,
    grace: Option<Grace>,
    /// The time at which the database was last reached.
    reached: UnixMillis,
    /// While the database is unreachable: the stamp of the grace period that will follow.
    away: Option<UnixMillis>,
    pending: HashMap<PeerNumber, Renewal>,
    stamped: UnixMillis,
    /// The time from which no lease that this tracker renewed or granted a grace period can be alive.
    quiet_from: UnixMillis,
}

impl LeaseTable {
    /// The state at the start of a tracker; `stamp` is the stored one.
    pub fn new(rules: LeaseRules, stamp: Option<UnixMillis>, now: UnixMillis) -> Self {
        let until = now + rules.lease;
        let grace = stamp.map(|stamp| Grace { stamp, until });
        let pending = HashMap::default();
        Self {
            rules,
            grace,
            reached: now,
            away: None,
            pending,
            stamped: UnixMillis::default(),
            quiet_from: until,
        }
    }

    /// The time of a renewal of the peer's session that is not stored yet.
    fn pending(&self, peer: PeerNumber, record: &LeaseRecord) -> Option<UnixMillis> {
        let renewal = self.pending.get(&peer).filter(|renewal| renewal.session == record.session)?;
        Some(renewal.at)
    }

    /// Whether a renewal is so far in the future that it comes from a wrong clock and must be ignored.
    pub fn is_impossible(&self, renewed: UnixMillis, now: UnixMillis) -> bool {
        renewed > now + self.rules.lease
    }

    /// Whether the peer counts as alive.
    pub fn is_alive(&self, peer: PeerNumber, record: &LeaseRecord, now: UnixMillis) -> bool {
        self.alive_until(peer, record, now).is_some()
    }

    /// The time until which the peer counts as alive without another renewal, or `None` if it is not alive.
    pub fn alive_until(&self, peer: PeerNumber, record: &LeaseRecord, now: UnixMillis) -> Option<UnixMillis> {
        if record.left {
            return None;
        }
        let end = |renewed: UnixMillis| renewed + self.rules.lease;
        let leased = |renewed: UnixMillis| {
            let covered = !self.is_impossible(renewed, now) && now < end(renewed);
            covered.then(|| end(renewed))
        };
        let graced = |grace: &Grace| {
            let alive = grace.stamp < end(record.renewed) && !self.is_impossible(record.renewed, now);
            alive && grace.is_on(now, self.rules)
        };
        let grace = match self.away {
            Some(stamp) => Some(Grace { stamp, until: now + self.rules.lease }),
            None => self.grace,
        };
        let pending = self.pending(peer, record).and_then(leased);
        leased(record.renewed).max(pending).max(grace.filter(graced).map(|grace| grace.until))
    }

    /// Records that the database is unreachable. Peers that were alive when it was last reached stay alive until one lease
    /// after it is reached again.
    pub fn missed(&mut self) {
        let reached = self.reached;
        let held = self.grace.filter(|grace| grace.is_on(reached, self.rules));
        self.away.get_or_insert_with(|| held.map_or(reached, |grace| grace.stamp.min(reached)));
    }

    /// Whether the database was unreachable at the last attempt.
    pub fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// Records that the database was reached. Returns whether it had been unreachable.
    pub fn reached(&mut self, now: UnixMillis) -> bool {
        self.reached = now;
        let Some(stamp) = self.away.take() else { return false };
        self.grace = Some(Grace { stamp, until: now + self.rules.lease });
        self.saw_alive(now);
        true
    }

    /// Records a renewal.
    pub fn renew(&mut self, peer: PeerNumber, session: SessionId, now: UnixMillis) {
        self.pending.insert(peer, Renewal { session, at: now });
        self.saw_alive(now);
    }

    /// Discards renewals of a peer that opened a session or left.
    pub fn reset(&mut self, peer: PeerNumber, now: UnixMillis) {
        self.pending.remove(&peer);
        self.saw_alive(now);
    }

    fn saw_alive(&mut self, now: UnixMillis) {
        self.quiet_from = self.quiet_from.max(now + self.rules.lease);
    }

    /// Returns the data to be written, or `None` if there is neither a renewal nor a lease to which the stamp matters.
    pub fn take(&mut self, now: UnixMillis) -> Option<Flush> {
        // Ended for good, even if the clock returns to the earlier time.
        self.grace = self.grace.filter(|grace| grace.is_on(now, self.rules));
        if self.pending.is_empty() && self.stamped >= self.quiet_from {
            return None;
        }
        // They remain pending until they are written, because until then the database does not show these peers as alive.
        let renewals = self.pending.iter().map(|(peer, renewal)| (*peer, *renewal)).collect();
        // A tracker that starts during a grace period grants the same one.
        let held = self.grace.map(|grace| grace.stamp);
        let stamp = self.away.or(held).map_or(now, |stamp| stamp.min(now));
        Some(Flush { renewals, stamp })
    }

    /// Removes renewals that were written or are void. Newer ones remain for the next flush.
    pub fn written(&mut self, renewals: &[(PeerNumber, Renewal)]) {
        for (peer, renewal) in renewals {
            if self.pending.get(peer) == Some(renewal) {
                self.pending.remove(peer);
            }
        }
    }

    /// Records that the stamp was written.
    pub fn stamped(&mut self, stamp: UnixMillis) {
        self.stamped = self.stamped.max(stamp);
    }

    /// The action of a sweep for a peer.
    pub fn verdict(&self, peer: PeerNumber, record: &LeaseRecord, now: UnixMillis) -> Verdict {
        if self.is_alive(peer, record, now) {
            let due = now >= record.began + self.rules.settle;
            return if due && !record.settled { Verdict::Settle } else { Verdict::Keep };
        }
        let renewed = self.pending(peer, record).unwrap_or_default().max(record.renewed);
        let away = now.saturating_since(renewed);
        // With a clock that was set back the time away is 0.
        if away >= self.rules.retention { Verdict::Remove } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::PeerId;
    use proptest::prelude::*;

    const RULES: LeaseRules = LeaseRules {
        lease: Duration::from_millis(30),
        retention: Duration::from_secs(1),
        settle: Duration::from_millis(60),
    };

    fn peer(n: u8) -> PeerNumber {
        PeerNumber(u64::from(n))
    }

    fn record(session: u8, renewed: u64) -> LeaseRecord {
        LeaseRecord {
            id: PeerId::from_bytes([1; 32]),
            session: SessionId([session; 16]),
            began: UnixMillis(renewed),
            renewed: UnixMillis(renewed),
            endpoints: Vec::new(),
            requested: Vec::new(),
            authenticated: false,
            offered: false,
            left: false,
            settled: false,
        }
    }

    #[test]
    fn lease_ends_without_renewal_of_the_same_session() {
        let mut table = LeaseTable::new(RULES, None, UnixMillis(0));
        let lease = record(1, 1000);
        assert!(table.is_alive(peer(1), &lease, UnixMillis(1029)));
        assert!(!table.is_alive(peer(1), &lease, UnixMillis(1030)));
        table.renew(peer(1), SessionId([1; 16]), UnixMillis(1020));
        assert!(table.is_alive(peer(1), &lease, UnixMillis(1049)));
        assert!(!table.is_alive(peer(1), &record(2, 1000), UnixMillis(1049)));
    }

    #[test]
    fn peer_that_left_gets_no_grace_period() {
        let table = LeaseTable::new(RULES, Some(UnixMillis(1000)), UnixMillis(1001));
        let gone = LeaseRecord { left: true, ..record(1, 1000) };
        assert!(!table.is_alive(peer(1), &gone, UnixMillis(1001)));
    }

    #[test]
    fn restart_grants_grace_to_peers_alive_at_the_stamp() {
        let table = LeaseTable::new(RULES, Some(UnixMillis(1010)), UnixMillis(5000));
        assert!(table.is_alive(peer(1), &record(1, 1000), UnixMillis(5029)), "alive at the stamp");
        assert!(
            !table.is_alive(peer(1), &record(1, 1000), UnixMillis(5030)),
            "the grace period is one lease"
        );
        assert!(!table.is_alive(peer(1), &record(1, 980), UnixMillis(5000)), "dead at the stamp");
    }

    #[test]
    fn grace_ends_when_the_clock_is_set_back() {
        let mut table = LeaseTable::new(RULES, Some(UnixMillis(1010)), UnixMillis(5000));
        let lease = record(1, 1000);
        assert!(table.is_alive(peer(1), &lease, UnixMillis(5000)));
        assert!(table.is_alive(peer(1), &lease, UnixMillis(4990)), "a small adjustment of the clock");
        assert!(!table.is_alive(peer(1), &lease, UnixMillis(2000)));
        table.renew(peer(2), SessionId([2; 16]), UnixMillis(2000));
        assert_eq!(table.take(UnixMillis(2000)).unwrap().stamp, UnixMillis(2000));
        assert!(!table.is_alive(peer(1), &lease, UnixMillis(5000)), "the grace period has ended");
    }

    #[test]
    fn renewal_in_the_far_future_is_ignored() {
        let table = LeaseTable::new(RULES, None, UnixMillis(0));
        assert!(!table.is_alive(peer(1), &record(1, 1_000_000), UnixMillis(1000)));
        assert_eq!(table.verdict(peer(1), &record(1, 1_000_000), UnixMillis(1000)), Verdict::Keep);
    }

    #[test]
    fn outage_grants_grace_to_peers_alive_before_it() {
        let mut table = LeaseTable::new(RULES, None, UnixMillis(1000));
        assert!(!table.reached(UnixMillis(1005)));
        table.missed();
        table.missed();
        let (lived, dead) = (record(1, 990), record(1, 975));
        assert!(table.is_alive(peer(1), &lived, UnixMillis(2000)), "the peer could not renew");
        assert!(!table.is_alive(peer(1), &dead, UnixMillis(2000)), "dead before the outage");
        assert_eq!(
            table.take(UnixMillis(2000)).unwrap().stamp,
            UnixMillis(1005),
            "a tracker that starts now grants the same grace period"
        );
        assert!(table.reached(UnixMillis(2000)));
        assert!(table.is_alive(peer(1), &lived, UnixMillis(2029)));
        assert!(!table.is_alive(peer(1), &lived, UnixMillis(2030)), "the grace period is one lease");
        assert!(!table.is_alive(peer(1), &dead, UnixMillis(2001)));
        assert_eq!(table.take(UnixMillis(2010)).unwrap().stamp, UnixMillis(1005));
        assert_eq!(table.take(UnixMillis(2030)).unwrap().stamp, UnixMillis(2030));
    }

    #[test]
    fn outage_during_grace_continues_the_same_grace() {
        let mut table = LeaseTable::new(RULES, Some(UnixMillis(500)), UnixMillis(1000));
        table.missed();
        table.reached(UnixMillis(1100));
        assert!(table.is_alive(peer(1), &record(1, 490), UnixMillis(1129)));
        assert!(!table.is_alive(peer(1), &record(1, 490), UnixMillis(1130)));
    }

    #[test]
    fn renewal_counts_beside_a_stored_one_of_a_wrong_clock() {
        let mut table = LeaseTable::new(RULES, None, UnixMillis(0));
        table.renew(peer(1), SessionId([1; 16]), UnixMillis(1000));
        assert!(table.is_alive(peer(1), &record(1, 1_000_000), UnixMillis(1029)));
        assert!(!table.is_alive(peer(1), &record(1, 1_000_000), UnixMillis(1030)));
    }

    #[test]
    fn flush_returns_newest_renewals_until_written() {
        let mut table = LeaseTable::new(RULES, None, UnixMillis(0));
        let session = SessionId([1; 16]);
        table.renew(peer(1), session, UnixMillis(10));
        table.renew(peer(1), session, UnixMillis(20));
        let flush = table.take(UnixMillis(21)).unwrap();
        assert_eq!(
            flush,
            Flush {
                renewals: vec![(peer(1), Renewal { session, at: UnixMillis(20) })],
                stamp: UnixMillis(21)
            }
        );
        assert!(table.is_alive(peer(1), &record(1, 0), UnixMillis(40)), "the peer is alive during the write");
        assert_eq!(table.take(UnixMillis(21)), Some(flush.clone()), "a failed flush is repeated");
        table.renew(peer(1), session, UnixMillis(22));
        table.written(&flush.renewals);
        let newer = table.take(UnixMillis(23)).unwrap().renewals;
        assert_eq!(newer, [(peer(1), Renewal { session, at: UnixMillis(22) })]);
        table.written(&newer);
        assert!(table.take(UnixMillis(24)).unwrap().renewals.is_empty());
    }

    #[test]
    fn stamps_continue_until_no_lease_can_be_alive() {
        let mut table = LeaseTable::new(RULES, None, UnixMillis(0));
        table.renew(peer(1), SessionId([1; 16]), UnixMillis(10));
        let flush = table.take(UnixMillis(10)).unwrap();
        table.written(&flush.renewals);
        table.stamped(UnixMillis(10));
        assert!(
            table.take(UnixMillis(30)).is_some(),
            "the lease may still be alive, so a restart needs the stamp"
        );
        table.stamped(UnixMillis(45));
        assert_eq!(table.take(UnixMillis(50)), None);
    }

    #[test]
    fn verdict_depends_on_the_time_away() {
        let mut table = LeaseTable::new(RULES, None, UnixMillis(0));
        let lease = record(1, 100);
        assert_eq!(table.verdict(peer(1), &lease, UnixMillis(110)), Verdict::Keep);
        assert_eq!(table.verdict(peer(1), &lease, UnixMillis(1099)), Verdict::Keep);
        assert_eq!(table.verdict(peer(1), &lease, UnixMillis(1100)), Verdict::Remove);
        table.renew(peer(1), lease.session, UnixMillis(1095));
        assert_eq!(table.verdict(peer(1), &lease, UnixMillis(1100)), Verdict::Settle);
    }

    proptest! {
        #[test]
        fn peer_is_alive_for_exactly_one_lease(
            gaps in prop::collection::vec(1u64..40, 1..20), flush_every in 1usize..4,
        ) {
            let mut table = LeaseTable::new(RULES, None, UnixMillis(0));
            let (mut now, mut last, mut lease) = (UnixMillis(1000), UnixMillis(1000), record(1, 1000));
            for (step, gap) in gaps.into_iter().enumerate() {
                now = now + Duration::from_millis(gap);
                prop_assert_eq!(table.is_alive(peer(1), &lease, now), now < last + RULES.lease);
                table.renew(peer(1), lease.session, now);
                last = now;
                if step % flush_every == 0 {
                    let flush = table.take(now).unwrap();
                    lease.renewed = flush.renewals[0].1.at;
                    table.written(&flush.renewals);
                }
            }
        }
    }
}
