//! Copies of random entries, and the mark of a target.

use super::mark::{Cursor, Mark, VERSION};
use super::*;
use enjambre_core::Memory;
use proptest::prelude::*;
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;

const SPACE: Space = Space::new("some");

async fn holding(entries: &BTreeMap<Vec<u8>, Vec<u8>>) -> Memory {
    let storage = Memory::new();
    for (key, value) in entries {
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new(key.clone()).unwrap(), value.clone());
        storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    storage
}

fn copy<'a>(from: &'a Memory, to: &'a Memory) -> Copy<'a> {
    Copy { from, to, space: SPACE, change: &|_, _, value| Ok(value), marking: None }
}

fn entries() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    let bytes = |lengths| prop::collection::vec(0u8..3, lengths);
    prop::collection::btree_map(bytes(1..5), bytes(0..3), 0..60)
}

proptest! {
    #[test]
    fn copy_makes_target_equal_to_source(ours in entries(), theirs in entries()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (from, to) = (holding(&ours).await, holding(&theirs).await);
            let first = copy(&from, &to).first_difference().await.unwrap();
            let differing = ours.iter().chain(&theirs).filter(|(key, _)| ours.get(*key) != theirs.get(*key));
            let differing = differing.map(|(key, _)| Key::new(key.clone()).unwrap()).min();
            prop_assert_eq!(first, differing);
            let copied = copy(&from, &to).run(|_| {}).await.unwrap();
            prop_assert_eq!(copied.entries, ours.len() as u64);
            prop_assert_eq!(copy(&from, &to).first_difference().await.unwrap(), None);
            prop_assert_eq!(count(&to, SPACE).await.unwrap(), copied);
            empty(&to, &[SPACE], None).await.unwrap();
            prop_assert!(is_empty(&to, &[SPACE]).await.unwrap());
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn copy_of_many_large_entries_uses_several_batches() {
    let many: BTreeMap<Vec<u8>, Vec<u8>> = (0..5000u32)
        .map(|number| (number.to_be_bytes().to_vec(), vec![1; if number < 300 { 32 << 10 } else { 3 }]))
        .collect();
    let (from, to) = (holding(&many).await, Memory::new());
    let mut reported = Vec::new();
    let copied = copy(&from, &to).run(|count| reported.push(count)).await.unwrap();
    assert_eq!(copied.entries, 5000);
    assert!(reported.len() > 7 && reported.is_sorted_by_key(|count| count.entries), "{reported:?}");
    assert_eq!(copy(&from, &to).first_difference().await.unwrap(), None);
}

#[tokio::test]
async fn is_same_detects_one_database() {
    let (one, other) = (Memory::new(), Memory::new());
    assert!(is_same(&one, &one).await.unwrap());
    assert!(!is_same(&one, &other).await.unwrap());
    assert!(is_empty(&one, &[MARKS]).await.unwrap(), "the probe is removed");
}

#[tokio::test]
async fn mark_exists_until_copy_is_finished() {
    let target = Memory::new();
    assert_eq!(mark::find(&target).await.unwrap(), None);
    let mut marking = Marking::read(&target).await.unwrap();
    let mut written = Mark::new(b"source");
    let bytes = |bytes: &[u8]| ByteBuf::from(bytes);
    let (of, stamp, after) = (bytes(b"state"), bytes(b"stamp"), bytes(&[1; 36]));
    written.content = Some(Cursor { of, stamp, after, pieces: 3, bytes: 4 });
    for emptying in [true, false] {
        written.emptying = emptying;
        marking.write(&written).await.unwrap();
        let found = mark::find(&target).await.unwrap().unwrap();
        assert_eq!(
            (found.v, &found.source, found.emptying, &found.content),
            (VERSION, &written.source, emptying, &written.content)
        );
    }
    marking.remove().await.unwrap();
    assert_eq!(mark::find(&target).await.unwrap(), None);
}

#[tokio::test]
async fn last_started_copy_wins() {
    let ours = BTreeMap::from([(b"key".to_vec(), b"value".to_vec())]);
    let (source, target) = (holding(&ours).await, Memory::new());
    let mut first = Marking::read(&target).await.unwrap();
    let mut late = Marking::read(&target).await.unwrap();
    first.write(&Mark::new(b"source")).await.unwrap();
    let conflict = |outcome: Result<(), StorageError>| {
        assert!(matches!(outcome, Err(StorageError::Conflict)), "{outcome:?}");
    };
    conflict(late.write(&Mark::new(b"source")).await);
    // A second copy from the same source resumes with the same mark.
    let mut second = Marking::read(&target).await.unwrap();
    let found = second.mark().unwrap().unwrap();
    second.write(&found).await.unwrap();
    let run = async |marking: &Marking<'_>| {
        let copy = Copy { marking: Some(marking), ..copy(&source, &target) };
        copy.run(|_| {}).await.map(drop)
    };
    conflict(run(&first).await);
    conflict(first.write(&found).await);
    conflict(first.remove().await);
    assert!(is_empty(&target, &[SPACE]).await.unwrap(), "the first copy wrote nothing");
    run(&second).await.unwrap();
    let mut third = Marking::read(&target).await.unwrap();
    third.write(&found).await.unwrap();
    conflict(empty(&target, &[SPACE], Some(&second)).await);
    assert!(!is_empty(&target, &[SPACE]).await.unwrap());
    empty(&target, &[SPACE], Some(&third)).await.unwrap();
    third.remove().await.unwrap();
}

#[tokio::test]
async fn newer_mark_has_a_version_and_malformed_one_is_corrupt() {
    #[derive(Serialize)]
    struct Newer {
        v: u64,
        source: u64,
    }
    let target = Memory::new();
    let put = async |value: Vec<u8>| {
        let mut batch = Batch::new();
        batch.put(MARKS, Key::new("state").unwrap(), value);
        target.commit(batch, Durability::Buffered).await.unwrap();
    };
    let mut value = Vec::new();
    ciborium::into_writer(&Newer { v: 1000, source: 1 }, &mut value).unwrap();
    put(value).await;
    assert_eq!(mark::find(&target).await.unwrap().unwrap().v, 1000);
    put(vec![0xff; 3]).await;
    assert!(matches!(mark::find(&target).await, Err(StorageError::Corrupt { .. })));
}

#[tokio::test]
async fn extent_changes_with_every_entry() {
    let entries = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    };
    let mut seen = Vec::new();
    for pairs in
        [&[("a", "v"), ("b", "w")][..], &[("a", "v")], &[("a", "w")], &[("av", "")], &[("b", "v")], &[]]
    {
        let storage = holding(&entries(pairs)).await;
        let extent = Extent::of(&storage, SPACE).await.unwrap();
        assert_eq!(extent.count, count(&storage, SPACE).await.unwrap());
        assert_eq!(extent, Extent::of(&storage, SPACE).await.unwrap());
        assert!(!seen.contains(&extent.hash), "{pairs:?}");
        seen.push(extent.hash);
    }
}
