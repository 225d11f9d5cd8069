//! Evaluation of a group of batches that is committed as one transaction: the conditions that hold, and the writes.
//!
//! The functions are pure: they map the entries that were read under locks to writes. The conditions of a batch observe the
//! earlier batches of the group.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use enjambre_core::{Batch, Condition, Key, Space, Write};

/// The existing entries among the keys of a group. A key without an entry is absent from the database. A value is `None` if no
/// condition reads it.
pub(crate) type Existing = HashMap<(Space, Key), Option<Bytes>>;

/// The accesses of a group to a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// A condition reads the value.
    pub(crate) read: bool,
    /// A batch writes the key.
    pub(crate) written: bool,
}

/// The result of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All conditions hold.
    Applied,
    /// A condition does not hold.
    Conflict,
    /// A condition does not hold because of an earlier batch of the group.
    ConflictInGroup,
}

/// The writes to one space, in key order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SpaceWrites {
    /// Absent keys that get a value. Keys that must stay absent are inserted and deleted again, which prevents a concurrent
    /// insertion.
    pub(crate) inserts: Vec<(Key, Bytes)>,
    /// Existing keys that get another value.
    pub(crate) puts: Vec<(Key, Bytes)>,
    /// Keys to delete.
    pub(crate) deletes: Vec<Key>,
}

/// The evaluation of a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The result of each batch.
    pub(crate) verdicts: Vec<Verdict>,
    /// The combined writes of the applied batches.
    pub(crate) writes: BTreeMap<Space, SpaceWrites>,
}

/// Returns the keys that the batches access.
pub(crate) fn accesses<'a>(
    batches: impl Iterator<Item = &'a Batch>,
) -> BTreeMap<Space, BTreeMap<Key, Access>> {
    let mut accesses: BTreeMap<Space, BTreeMap<Key, Access>> = BTreeMap::new();
    for batch in batches {
        for (space, key) in batch.conditions.iter().map(Condition::target) {
            accesses.entry(space).or_default().entry(key.clone()).or_default().read = true;
        }
        for (space, key) in batch.writes.iter().map(Write::target) {
            accesses.entry(space).or_default().entry(key.clone()).or_default().written = true;
        }
    }
    accesses
}

/// Evaluates the batches in order.
pub(crate) fn decide<'a>(batches: impl Iterator<Item = &'a Batch>, existing: &Existing) -> Decision {
    let mut last_writes: BTreeMap<(Space, &Key), Option<&Bytes>> = BTreeMap::new();
    let mut absent: BTreeSet<(Space, &Key)> = BTreeSet::new();
    let mut verdicts = Vec::new();
    for batch in batches {
        let mut verdict = Verdict::Applied;
        let mut required_absent = Vec::new();
        for condition in &batch.conditions {
            let (target, expected) = (condition.target(), condition.value());
            if let Some(pending) = last_writes.get(&target) {
                if *pending != expected {
                    verdict = Verdict::ConflictInGroup;
                }
            } else if existing.get(&(target.0, target.1.clone())).and_then(Option::as_ref) != expected {
                // No batch of the group caused it.
                verdict = Verdict::Conflict;
                break;
            } else if expected.is_none() {
                required_absent.push(target);
            }
        }
        if verdict == Verdict::Applied {
            absent.extend(required_absent);
            last_writes.extend(batch.writes.iter().map(|write| (write.target(), write.value())));
        }
        verdicts.push(verdict);
    }
    let mut writes: BTreeMap<Space, SpaceWrites> = BTreeMap::new();
    let touched: BTreeSet<(Space, &Key)> = last_writes.keys().chain(&absent).copied().collect();
    for (space, key) in touched {
        let of_space = writes.entry(space).or_default();
        let exists = existing.contains_key(&(space, key.clone()));
        match last_writes.get(&(space, key)).copied().flatten() {
            Some(value) if exists => of_space.puts.push((key.clone(), value.clone())),
            Some(value) => of_space.inserts.push((key.clone(), value.clone())),
            None => {
                if !exists {
                    of_space.inserts.push((key.clone(), Bytes::new()));
                }
                of_space.deletes.push(key.clone());
            }
        }
    }
    Decision { verdicts, writes }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Space = Space::new("a");
    const B: Space = Space::new("b");

    fn key(name: &'static str) -> Key {
        Key::new(name).unwrap()
    }

    fn batch(fill: impl FnOnce(&mut Batch)) -> Batch {
        let mut batch = Batch::new();
        fill(&mut batch);
        batch
    }

    #[test]
    fn batch_observes_earlier_batches_and_last_write_wins() {
        let existing = Existing::from([((A, key("there")), Some(Bytes::from("1")))]);
        let batches = [
            batch(|b| _ = b.require(A, key("there"), "1").put(A, key("there"), "2")),
            batch(|b| _ = b.require(A, key("there"), "1").put(A, key("lost"), "x")),
            batch(|b| _ = b.require(A, key("there"), "2").delete(A, key("there"))),
            batch(|b| _ = b.require_absent(A, key("there")).put(A, key("there"), "3")),
            batch(|b| _ = b.require(B, key("none"), "1").put(A, key("lost"), "x")),
        ];
        let decision = decide(batches.iter(), &existing);
        use Verdict::{Applied, Conflict, ConflictInGroup};
        assert_eq!(decision.verdicts, [Applied, ConflictInGroup, Applied, Applied, Conflict]);
        let only = SpaceWrites { puts: vec![(key("there"), "3".into())], ..SpaceWrites::default() };
        assert_eq!(decision.writes, BTreeMap::from([(A, only)]));
    }

    #[test]
    fn absent_key_is_inserted_and_deleted_if_it_must_stay_absent() {
        let batches = [
            batch(|b| {
                _ = b.require_absent(A, key("new")).put(A, key("new"), "1").require_absent(A, key("gone"));
            }),
            batch(|b| _ = b.require(A, key("new"), "1").put(A, key("new"), "2").delete(A, key("gone"))),
            batch(|b| _ = b.delete(A, key("other")).put(B, key("any"), "1")),
        ];
        let decision = decide(batches.iter(), &Existing::new());
        assert_eq!(decision.verdicts, [Verdict::Applied; 3]);
        let a = SpaceWrites {
            inserts: vec![(key("gone"), "".into()), (key("new"), "2".into()), (key("other"), "".into())],
            puts: Vec::new(),
            deletes: vec![key("gone"), key("other")],
        };
        let b = SpaceWrites { inserts: vec![(key("any"), "1".into())], ..SpaceWrites::default() };
        assert_eq!(decision.writes, BTreeMap::from([(A, a), (B, b)]));
    }

    #[test]
    fn accesses_combine_conditions_and_writes() {
        let batches = [
            batch(|b| _ = b.require(A, key("a"), "1").require_absent(A, key("b")).put(A, key("b"), "2")),
            batch(|b| _ = b.delete(A, key("a")).put(B, key("c"), "1")),
        ];
        let (read, written) = (Access { read: true, written: false }, Access { read: false, written: true });
        let of = |index: usize| accesses(batches[index..=index].iter());
        let both = Access { read: true, written: true };
        assert_eq!(of(0), BTreeMap::from([(A, BTreeMap::from([(key("a"), read), (key("b"), both)]))]));
        assert_eq!(of(1)[&B], BTreeMap::from([(key("c"), written)]));
        assert_eq!(accesses(batches.iter())[&A], BTreeMap::from([(key("a"), both), (key("b"), both)]));
    }

    #[test]
    fn conflicting_batch_writes_nothing() {
        let batches = [batch(|b| _ = b.require_absent(A, key("x")).require(A, key("y"), "1"))];
        let decision = decide(batches.iter(), &Existing::new());
        assert_eq!((decision.verdicts, decision.writes.len()), (vec![Verdict::Conflict], 0));
    }
}
