//! Decides over a group of batches that is committed as one: whose conditions hold, and what is to be written.
//!
//! Pure: it sees what was read under locks, and gives the writes. The conditions of a batch see the batches before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use enjambre_core::storage::value::{Batch, Condition, Key, Space};

/// What the database holds, of the keys that a group has to do with. A key that is not in it is absent; a value is there
/// where a condition asks for it.
pub(crate) type Found = HashMap<(Space, Key), Option<Bytes>>;

/// What a group has to do with a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// A condition asks for its value.
    pub(crate) asked: bool,
    /// A batch writes it.
    pub(crate) written: bool,
}

/// Whether a batch is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All of its conditions hold.
    Applied,
    /// One does not hold.
    Conflict,
    /// One does not hold because of a batch before it in the group.
    ConflictInGroup,
}

/// What is written to one space, each in the order of the keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SpaceWrites {
    /// Keys that are not there and get a value. Those that are to stay away are among them, inserted for a moment, so that
    /// nobody else inserts them meanwhile.
    pub(crate) inserts: Vec<(Key, Bytes)>,
    /// Keys that are there and get another value.
    pub(crate) puts: Vec<(Key, Bytes)>,
    /// Keys that go.
    pub(crate) deletes: Vec<Key>,
}

/// What a group comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// One for each batch.
    pub(crate) verdicts: Vec<Verdict>,
    /// What the batches that are applied write together.
    pub(crate) writes: BTreeMap<Space, SpaceWrites>,
}

/// Which keys the batches have to do with.
pub(crate) fn used<'a>(batches: impl Iterator<Item = &'a Batch>) -> BTreeMap<Space, BTreeMap<Key, Use>> {
    let mut used: BTreeMap<Space, BTreeMap<Key, Use>> = BTreeMap::new();
    for batch in batches {
        for condition in &batch.conditions {
            let (Condition::Absent(space, key) | Condition::Equals(space, key, _)) = condition;
            used.entry(*space).or_default().entry(key.clone()).or_default().asked = true;
        }
        for write in &batch.writes {
            let (space, key) = write.target();
            used.entry(space).or_default().entry(key.clone()).or_default().written = true;
        }
    }
    used
}

/// Goes through the batches in their order.
pub(crate) fn decide<'a>(batches: impl Iterator<Item = &'a Batch>, found: &Found) -> Decision {
    let mut last: BTreeMap<(Space, &Key), Option<&Bytes>> = BTreeMap::new();
    let mut absent: BTreeSet<(Space, &Key)> = BTreeSet::new();
    let mut verdicts = Vec::new();
    for batch in batches {
        let mut verdict = Verdict::Applied;
        let mut relies_on = Vec::new();
        for condition in &batch.conditions {
            let (place, expected) = match condition {
                Condition::Absent(space, key) => ((*space, key), None),
                Condition::Equals(space, key, value) => ((*space, key), Some(value)),
            };
            if let Some(pending) = last.get(&place) {
                if *pending != expected {
                    verdict = Verdict::ConflictInGroup;
                }
            } else if found.get(&(place.0, place.1.clone())).and_then(Option::as_ref) != expected {
                // Nothing in the group has to do with it.
                verdict = Verdict::Conflict;
                break;
            } else if expected.is_none() {
                relies_on.push(place);
            }
        }
        if verdict == Verdict::Applied {
            absent.extend(relies_on);
            last.extend(batch.writes.iter().map(|write| {
                let (space, key) = write.target();
                ((space, key), write.value())
            }));
        }
        verdicts.push(verdict);
    }
    let mut writes: BTreeMap<Space, SpaceWrites> = BTreeMap::new();
    let touched: BTreeSet<(Space, &Key)> = last.keys().chain(&absent).copied().collect();
    for (space, key) in touched {
        let of_space = writes.entry(space).or_default();
        let is_there = found.contains_key(&(space, key.clone()));
        match last.get(&(space, key)).copied().flatten() {
            Some(value) if is_there => of_space.puts.push((key.clone(), value.clone())),
            Some(value) => of_space.inserts.push((key.clone(), value.clone())),
            None => {
                if !is_there {
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
    fn a_batch_sees_the_batches_before_it_and_the_last_write_counts() {
        let found = Found::from([((A, key("there")), Some(Bytes::from("1")))]);
        let batches = [
            batch(|b| _ = b.require(A, key("there"), "1").put(A, key("there"), "2")),
            batch(|b| _ = b.require(A, key("there"), "1").put(A, key("lost"), "x")),
            batch(|b| _ = b.require(A, key("there"), "2").delete(A, key("there"))),
            batch(|b| _ = b.require_absent(A, key("there")).put(A, key("there"), "3")),
            batch(|b| _ = b.require(B, key("none"), "1").put(A, key("lost"), "x")),
        ];
        let decision = decide(batches.iter(), &found);
        use Verdict::{Applied, Conflict, ConflictInGroup};
        assert_eq!(decision.verdicts, [Applied, ConflictInGroup, Applied, Applied, Conflict]);
        let only = SpaceWrites { puts: vec![(key("there"), "3".into())], ..SpaceWrites::default() };
        assert_eq!(decision.writes, BTreeMap::from([(A, only)]));
    }

    #[test]
    fn what_is_absent_is_inserted_and_taken_out_again_where_it_is_to_stay_absent() {
        let batches = [
            batch(|b| {
                _ = b.require_absent(A, key("new")).put(A, key("new"), "1").require_absent(A, key("gone"));
            }),
            batch(|b| _ = b.require(A, key("new"), "1").put(A, key("new"), "2").delete(A, key("gone"))),
            batch(|b| _ = b.delete(A, key("other")).put(B, key("any"), "1")),
        ];
        let decision = decide(batches.iter(), &Found::new());
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
    fn each_key_is_used_as_conditions_and_writes_say() {
        let batches = [
            batch(|b| _ = b.require(A, key("a"), "1").require_absent(A, key("b")).put(A, key("b"), "2")),
            batch(|b| _ = b.delete(A, key("a")).put(B, key("c"), "1")),
        ];
        let (asked, written) = (Use { asked: true, written: false }, Use { asked: false, written: true });
        let of = |index: usize| used(batches[index..=index].iter());
        let both = Use { asked: true, written: true };
        assert_eq!(of(0), BTreeMap::from([(A, BTreeMap::from([(key("a"), asked), (key("b"), both)]))]));
        assert_eq!(of(1)[&B], BTreeMap::from([(key("c"), written)]));
        assert_eq!(used(batches.iter())[&A], BTreeMap::from([(key("a"), both), (key("b"), both)]));
    }

    #[test]
    fn a_refused_batch_guards_nothing() {
        let batches = [batch(|b| _ = b.require_absent(A, key("x")).require(A, key("y"), "1"))];
        let decision = decide(batches.iter(), &Found::new());
        assert_eq!((decision.verdicts, decision.writes.len()), (vec![Verdict::Conflict], 0));
    }
}
