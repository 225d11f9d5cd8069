//! Merges a group of batches into one transaction. The conditions of a batch observe the earlier batches of the group.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::runtime::HashMap;
use crate::storage::value::{Batch, Condition, Key, Space, Write};

/// Values that were read from the server. A key without an entry was not read.
pub(super) type Known = HashMap<(Space, Key), Option<Bytes>>;

/// The result of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All conditions hold if those of the transaction hold.
    Applied,
    /// A condition did not hold when its value was read.
    Conflict,
    /// A condition does not hold because of an earlier batch of the group.
    ConflictInGroup,
}

/// A group of batches as one transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    /// The result of each batch.
    pub(super) verdicts: Vec<Verdict>,
    /// The conditions of the applied batches, with distinct keys.
    pub(super) conditions: Vec<Condition>,
    /// The combined writes of the applied batches, with distinct keys.
    pub(super) writes: Vec<Write>,
}

/// Merges the batches in order. Conditions on keys that are not known are assumed to hold.
pub(super) fn merge(batches: &[&Batch], known: &Known) -> Merged {
    let mut required: BTreeMap<(Space, &Key), Option<&Bytes>> = BTreeMap::new();
    let mut written: BTreeMap<(Space, &Key), Option<&Bytes>> = BTreeMap::new();
    let mut verdicts = Vec::with_capacity(batches.len());
    for batch in batches {
        let mut verdict = Verdict::Applied;
        let mut added = BTreeMap::new();
        for condition in &batch.conditions {
            let (target, expected) = (condition.target(), condition.value());
            if let Some(found) = written.get(&target) {
                if *found != expected {
                    verdict = Verdict::ConflictInGroup;
                }
                continue;
            }
            let found = known.get(&(target.0, target.1.clone()));
            let differs = found.is_some_and(|found| found.as_ref() != expected);
            let contradicts = added.insert(target, expected).is_some_and(|other| other != expected);
            if differs || contradicts {
                // No other batch of the group caused it.
                verdict = Verdict::Conflict;
                break;
            }
            if required.get(&target).is_some_and(|other| *other != expected) {
                verdict = Verdict::ConflictInGroup;
            }
        }
        if verdict == Verdict::Applied {
            required.extend(added);
            written.extend(batch.effects());
        }
        verdicts.push(verdict);
    }
    let conditions = required.into_iter().map(|((space, key), value)| match value {
        Some(value) => Condition::Equals(space, key.clone(), value.clone()),
        None => Condition::Absent(space, key.clone()),
    });
    let writes = written.into_iter().map(|((space, key), value)| match value {
        Some(value) => Write::Put(space, key.clone(), value.clone()),
        None => Write::Delete(space, key.clone()),
    });
    Merged { verdicts, conditions: conditions.collect(), writes: writes.collect() }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Applied, Conflict, ConflictInGroup};
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

    fn merged(batches: &[Batch], known: &Known) -> Merged {
        merge(&batches.iter().collect::<Vec<_>>(), known)
    }

    #[test]
    fn batch_observes_earlier_batches_and_last_write_wins() {
        let batches = [
            batch(|b| _ = b.require(A, key("there"), "1").put(A, key("there"), "2")),
            batch(|b| _ = b.require(A, key("there"), "1").put(A, key("lost"), "x")),
            batch(|b| _ = b.require(A, key("there"), "2").delete(A, key("there"))),
            batch(|b| _ = b.require_absent(A, key("there")).put(A, key("there"), "3")),
            batch(|b| _ = b.require(B, key("none"), "1").put(B, key("none"), "2").put(B, key("none"), "3")),
        ];
        let merged = merged(&batches, &Known::default());
        assert_eq!(merged.verdicts, [Applied, ConflictInGroup, Applied, Applied, Applied]);
        let expected = batch(|b| {
            _ = b.require(A, key("there"), "1").require(B, key("none"), "1").put(A, key("there"), "3").put(
                B,
                key("none"),
                "3",
            );
        });
        assert_eq!((merged.conditions, merged.writes), (expected.conditions, expected.writes));
    }

    #[test]
    fn batch_with_a_known_conflict_is_omitted() {
        let known = Known::from_iter([((A, key("x")), Some(Bytes::from("1"))), ((A, key("y")), None)]);
        let batches = [
            batch(|b| _ = b.require_absent(A, key("x")).put(A, key("z"), "first")),
            batch(|b| _ = b.require(A, key("x"), "1").require_absent(A, key("y")).put(A, key("z"), "second")),
            batch(|b| _ = b.require(A, key("y"), "1")),
        ];
        let merged = merged(&batches, &known);
        assert_eq!(merged.verdicts, [Conflict, Applied, Conflict]);
        assert_eq!(
            (merged.conditions, merged.writes),
            (batches[1].conditions.clone(), batches[1].writes.clone())
        );
    }

    #[test]
    fn contradicting_conditions_do_not_hold_at_once() {
        let batches = [
            batch(|b| _ = b.require(A, key("x"), "1").require(A, key("x"), "2").put(A, key("z"), "no")),
            batch(|b| _ = b.require(A, key("x"), "1")),
            batch(|b| _ = b.require_absent(A, key("x")).put(A, key("z"), "no")),
        ];
        let merged = merged(&batches, &Known::default());
        assert_eq!(merged.verdicts, [Conflict, Applied, ConflictInGroup]);
        assert_eq!((merged.conditions, merged.writes), (batches[1].conditions.clone(), Vec::new()));
    }
}
