//! Who is alive: the rules, as decisions without I/O. Events and the time go in, actions come out.
//!
//! A lease is per peer. A renewal is remembered here and written down in batches ([`LeaseTable::take`]), so that
//! other trackers on the same database see it. Together with each batch goes a stamp: when some tracker last
//! looked after the leases. A tracker that starts gives those who were alive at that stamp one lease to come
//! back. A tracker that could not reach the database for a while does the same for those who were alive when it last
//! did: nobody could renew meanwhile, or no other tracker could tell of it. States of a peer, by the time since its
//! last renewal:
//!
//! ```text
//! hello, renew -> alive --one lease, or leave--> away --retention--> removed with its claims
//!                   ^------------renew, hello-----|
//! ```
//! (after `leave` only `hello` leads back, because `leave` ends the session).

use super::layout::{LeaseRecord, PeerNumber};
use crate::machine::HashMap;
use crate::protocol::message::SessionId;

/// The lengths of time that decide over peers, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRules {
    /// How long a peer counts as alive after a renewal.
    pub lease: u64,
    /// How long the claims of a peer that is not alive are kept for its return.
    pub retention: u64,
    /// How long after a hello the claims of the peer's former sessions are cleared away.
    pub settle: u64,
}

/// A renewal that is not written down yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The session that was renewed.
    pub session: SessionId,
    /// When, in ms since 1970.
    pub at: u64,
}

/// What is to be written down now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flush {
    /// The newest renewal of each peer.
    pub renewals: Vec<(PeerNumber, Renewal)>,
    /// The stamp: who was alive then has had the time to renew ever since, or still has it.
    pub stamp: u64,
}

/// What a sweep does with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Take away the claims that it made before its session began.
    Settle,
    /// Take away its claims and then the peer.
    Remove,
}

#[derive(Debug, Clone, Copy)]
struct Grace {
    stamp: u64,
    until: u64,
}

impl Grace {
    /// Whether it is under way. One that ends much later than a lease from now is from before the clock was put back: by
    /// a little it always may be, and who asks may have looked at the clock before it began.
    const fn is_on(&self, now: u64, rules: LeaseRules) -> bool {
        now < self.until && self.until - now <= rules.lease.saturating_mul(2)
    }
}

/// The leases as one tracker sees them, beside what the database says.
#[derive(Debug)]
pub struct LeaseTable {
    rules: LeaseRules,
    grace: Option<Grace>,
    /// When the database was last reached.
    reached: u64,
    /// While the database is away: the stamp of the grace that will follow.
    away: Option<u64>,
    pending: HashMap<PeerNumber, Renewal>,
    stamped: u64,
    /// From then on no lease that this tracker renewed or gave grace to can be alive.
    quiet_from: u64,
}

impl LeaseTable {
    /// The leases at the start of a tracker, `stamp` being what the last batch of renewals left.
    pub fn new(rules: LeaseRules, stamp: Option<u64>, now: u64) -> Self {
        let until = now.saturating_add(rules.lease);
        let grace = stamp.map(|stamp| Grace { stamp, until });
        let pending = HashMap::default();
        Self { rules, grace, reached: now, away: None, pending, stamped: 0, quiet_from: until }
    }

    /// The lengths of time.
    pub const fn rules(&self) -> LeaseRules {
        self.rules
    }

    /// When the peer's session was renewed by what is not written down yet.
    fn pending(&self, peer: PeerNumber, record: &LeaseRecord) -> Option<u64> {
        let renewal = self.pending.get(&peer).filter(|renewal| renewal.session == record.session)?;
        Some(renewal.at)
    }

    /// Whether a renewal is so far in the future that it is one of a clock that was wrong; it must not live for ever.
    pub fn is_impossible(&self, renewed: u64, now: u64) -> bool {
        renewed > now.saturating_add(self.rules.lease)
    }

    /// Whether the peer counts as alive.
    pub fn is_alive(&self, peer: PeerNumber, record: &LeaseRecord, now: u64) -> bool {
        self.alive_until(peer, record, now).is_some()
    }

    /// Until when the peer counts as alive if nothing more is heard of it; none where it does not.
    pub fn alive_until(&self, peer: PeerNumber, record: &LeaseRecord, now: u64) -> Option<u64> {
        if record.left {
            return None;
        }
        let end = |renewed: u64| renewed.saturating_add(self.rules.lease);
        let leased = |renewed: u64| {
            let covered = !self.is_impossible(renewed, now) && now < end(renewed);
            covered.then(|| end(renewed))
        };
        let graced = |grace: &Grace| {
            let alive = grace.stamp < end(record.renewed) && !self.is_impossible(record.renewed, now);
            alive && grace.is_on(now, self.rules)
        };
        let grace = match self.away {
            Some(stamp) => Some(Grace { stamp, until: now.saturating_add(self.rules.lease) }),
            None => self.grace,
        };
        let pending = self.pending(peer, record).and_then(leased);
        leased(record.renewed).max(pending).max(grace.filter(graced).map(|grace| grace.until))
    }

    /// The database could not be reached. Until one lease after it is reached again, those live who were alive when it
    /// was reached last.
    pub fn missed(&mut self) {
        let reached = self.reached;
        let held = self.grace.filter(|grace| grace.is_on(reached, self.rules));
        self.away.get_or_insert_with(|| held.map_or(reached, |grace| grace.stamp.min(reached)));
    }

    /// The database was reached; says whether it had been away.
    pub fn reached(&mut self, now: u64) -> bool {
        self.reached = now;
        let Some(stamp) = self.away.take() else { return false };
        self.grace = Some(Grace { stamp, until: now.saturating_add(self.rules.lease) });
        self.saw_alive(now);
        true
    }

    /// A peer renewed its lease.
    pub fn renew(&mut self, peer: PeerNumber, session: SessionId, now: u64) {
        self.pending.insert(peer, Renewal { session, at: now });
        self.saw_alive(now);
    }

    /// A peer began a session or left: what was renewed before no longer counts.
    pub fn reset(&mut self, peer: PeerNumber, now: u64) {
        self.pending.remove(&peer);
        self.saw_alive(now);
    }

    fn saw_alive(&mut self, now: u64) {
        self.quiet_from = self.quiet_from.max(now.saturating_add(self.rules.lease));
    }

    /// What is to be written down; none where there is neither a renewal nor a lease that a stamp could matter for.
    pub fn take(&mut self, now: u64) -> Option<Flush> {
        // Over for good, also if the clock gets to where it was.
        self.grace = self.grace.filter(|grace| grace.is_on(now, self.rules));
        if self.pending.is_empty() && self.stamped >= self.quiet_from {
            return None;
        }
        // They stay here until they are written: meanwhile the database does not say that these peers are alive.
        let renewals = self.pending.iter().map(|(peer, renewal)| (*peer, *renewal)).collect();
        // Whoever starts in the middle of a grace gives the same one.
        let held = self.grace.map(|grace| grace.stamp);
        let stamp = self.away.or(held).map_or(now, |stamp| stamp.min(now));
        Some(Flush { renewals, stamp })
    }

    /// These renewals were written down, or count no longer. Newer ones stay for the next flush.
    pub fn written(&mut self, renewals: &[(PeerNumber, Renewal)]) {
        for (peer, renewal) in renewals {
            if self.pending.get(peer) == Some(renewal) {
                self.pending.remove(peer);
            }
        }
    }

    /// The stamp was written down.
    pub fn stamped(&mut self, stamp: u64) {
        self.stamped = self.stamped.max(stamp);
    }

    /// What a sweep does with a peer.
    pub fn verdict(&self, peer: PeerNumber, record: &LeaseRecord, now: u64) -> Verdict {
        if self.is_alive(peer, record, now) {
            let due = now >= record.hello.saturating_add(self.rules.settle);
            return if due && !record.settled { Verdict::Settle } else { Verdict::Keep };
        }
        let renewed = self.pending(peer, record).unwrap_or_default().max(record.renewed);
        let away = now.saturating_sub(renewed);
        // A clock that was put back says nothing about how long the peer has been away.
        if away >= self.rules.retention { Verdict::Remove } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;
    use proptest::prelude::*;

    const RULES: LeaseRules = LeaseRules { lease: 30, retention: 1000, settle: 60 };

    fn peer(n: u8) -> PeerNumber {
        PeerNumber(u64::from(n))
    }

    fn record(session: u8, renewed: u64) -> LeaseRecord {
        LeaseRecord {
            v: 1,
            id: PeerId::from_bytes([1; 32]),
            session: SessionId([session; 16]),
            hello: renewed,
            renewed,
            endpoints: Vec::new(),
            left: false,
            settled: false,
        }
    }

    #[test]
    fn a_lease_ends_unless_it_is_renewed_and_a_renewal_of_an_older_session_counts_for_nothing() {
        let mut table = LeaseTable::new(RULES, None, 0);
        let lease = record(1, 1000);
        assert!(table.is_alive(peer(1), &lease, 1029));
        assert!(!table.is_alive(peer(1), &lease, 1030));
        table.renew(peer(1), SessionId([1; 16]), 1020);
        assert!(table.is_alive(peer(1), &lease, 1049));
        assert!(!table.is_alive(peer(1), &record(2, 1000), 1049));
    }

    #[test]
    fn who_left_is_away_whatever_the_grace() {
        let table = LeaseTable::new(RULES, Some(1000), 1001);
        let gone = LeaseRecord { left: true, ..record(1, 1000) };
        assert!(!table.is_alive(peer(1), &gone, 1001));
    }

    #[test]
    fn after_a_restart_those_alive_at_the_stamp_have_one_lease_to_come_back() {
        let table = LeaseTable::new(RULES, Some(1010), 5000);
        assert!(table.is_alive(peer(1), &record(1, 1000), 5029), "alive at the stamp");
        assert!(!table.is_alive(peer(1), &record(1, 1000), 5030), "the grace is one lease");
        assert!(!table.is_alive(peer(1), &record(1, 980), 5000), "dead at the stamp already");
    }

    #[test]
    fn a_grace_ends_when_the_clock_is_put_back() {
        let mut table = LeaseTable::new(RULES, Some(1010), 5000);
        let lease = record(1, 1000);
        assert!(table.is_alive(peer(1), &lease, 5000));
        assert!(table.is_alive(peer(1), &lease, 4990), "a clock may be put right by a little");
        assert!(!table.is_alive(peer(1), &lease, 2000));
        table.renew(peer(2), SessionId([2; 16]), 2000);
        assert_eq!(table.take(2000).unwrap().stamp, 2000);
        assert!(!table.is_alive(peer(1), &lease, 5000), "it is over");
    }

    #[test]
    fn a_renewal_from_the_future_does_not_live_for_ever() {
        let table = LeaseTable::new(RULES, None, 0);
        assert!(!table.is_alive(peer(1), &record(1, 1_000_000), 1000));
        assert_eq!(table.verdict(peer(1), &record(1, 1_000_000), 1000), Verdict::Keep);
    }

    #[test]
    fn whoever_lived_when_the_database_went_away_has_one_lease_to_come_back_once_it_is_there_again() {
        let mut table = LeaseTable::new(RULES, None, 1000);
        assert!(!table.reached(1005));
        table.missed();
        table.missed();
        let (lived, dead) = (record(1, 990), record(1, 975));
        assert!(table.is_alive(peer(1), &lived, 2000), "nobody could renew");
        assert!(!table.is_alive(peer(1), &dead, 2000), "dead before already");
        assert_eq!(table.take(2000).unwrap().stamp, 1005, "who starts now gives the same grace");
        assert!(table.reached(2000));
        assert!(table.is_alive(peer(1), &lived, 2029));
        assert!(!table.is_alive(peer(1), &lived, 2030), "the grace is one lease");
        assert!(!table.is_alive(peer(1), &dead, 2001));
        assert_eq!(table.take(2010).unwrap().stamp, 1005);
        assert_eq!(table.take(2030).unwrap().stamp, 2030);
    }

    #[test]
    fn an_outage_in_the_middle_of_a_grace_goes_on_with_it() {
        let mut table = LeaseTable::new(RULES, Some(500), 1000);
        table.missed();
        table.reached(1100);
        assert!(table.is_alive(peer(1), &record(1, 490), 1129));
        assert!(!table.is_alive(peer(1), &record(1, 490), 1130));
    }

    #[test]
    fn a_renewal_counts_beside_one_that_a_wrong_clock_left() {
        let mut table = LeaseTable::new(RULES, None, 0);
        table.renew(peer(1), SessionId([1; 16]), 1000);
        assert!(table.is_alive(peer(1), &record(1, 1_000_000), 1029));
        assert!(!table.is_alive(peer(1), &record(1, 1_000_000), 1030));
    }

    #[test]
    fn a_flush_holds_the_newest_renewals_until_they_are_written() {
        let mut table = LeaseTable::new(RULES, None, 0);
        let session = SessionId([1; 16]);
        table.renew(peer(1), session, 10);
        table.renew(peer(1), session, 20);
        let flush = table.take(21).unwrap();
        assert_eq!(flush, Flush { renewals: vec![(peer(1), Renewal { session, at: 20 })], stamp: 21 });
        assert!(table.is_alive(peer(1), &record(1, 0), 40), "while it is written the peer is alive");
        assert_eq!(table.take(21), Some(flush.clone()), "a flush that failed comes again");
        table.renew(peer(1), session, 22);
        table.written(&flush.renewals);
        let newer = table.take(23).unwrap().renewals;
        assert_eq!(newer, [(peer(1), Renewal { session, at: 22 })]);
        table.written(&newer);
        assert!(table.take(24).unwrap().renewals.is_empty());
    }

    #[test]
    fn stamps_go_on_until_no_lease_can_be_alive() {
        let mut table = LeaseTable::new(RULES, None, 0);
        table.renew(peer(1), SessionId([1; 16]), 10);
        let flush = table.take(10).unwrap();
        table.written(&flush.renewals);
        table.stamped(10);
        assert!(
            table.take(30).is_some(),
            "the lease may still be alive: a restart must know until when we looked"
        );
        table.stamped(45);
        assert_eq!(table.take(50), None);
    }

    #[test]
    fn the_verdict_follows_the_time_away() {
        let mut table = LeaseTable::new(RULES, None, 0);
        let lease = record(1, 100);
        assert_eq!(table.verdict(peer(1), &lease, 110), Verdict::Keep);
        assert_eq!(table.verdict(peer(1), &lease, 1099), Verdict::Keep);
        assert_eq!(table.verdict(peer(1), &lease, 1100), Verdict::Remove);
        table.renew(peer(1), lease.session, 1095);
        assert_eq!(table.verdict(peer(1), &lease, 1100), Verdict::Settle);
    }

    proptest! {
        #[test]
        fn a_peer_is_alive_exactly_for_one_lease_after_its_last_renewal(
            gaps in prop::collection::vec(1u64..40, 1..20), flush_every in 1usize..4,
        ) {
            let mut table = LeaseTable::new(RULES, None, 0);
            let (mut now, mut last, mut lease) = (1000, 1000, record(1, 1000));
            for (step, gap) in gaps.into_iter().enumerate() {
                now += gap;
                prop_assert_eq!(table.is_alive(peer(1), &lease, now), now < last + 30);
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
