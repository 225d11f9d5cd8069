//! Copies between memory databases, with concurrent writes to the source, concurrent copies, and interruptions.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use enjambre_core::{Batch, Durability, KeyRange, Memory};
use enjambre_swarm::catalogue::layout::{FILES, LEASES, VERSIONS};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

use super::*;
use crate::cli::progress::Bar;
use crate::config::sections::NodeKind;
use crate::registry::locations::node_place;

/// A tracker without replicas.
fn tracker(storage: Arc<dyn Storage>) -> Databases {
    let place = node_place(NodeKind::Tracker, Path::new("nowhere"));
    Databases { all: vec![Database { name: "catalogue", kind: DatabaseKind::Catalogue, place, storage }] }
}

fn progress() -> CopyProgress {
    CopyProgress { bar: Bar::hidden(), ..CopyProgress::new(false) }
}

async fn put(storage: &dyn Storage, space: Space, key: &str, value: &str) {
    let mut batch = Batch::new();
    batch.put(space, Key::new(key.to_owned()).unwrap(), value.to_owned());
    storage.commit(batch, Durability::Buffered).await.unwrap();
}

async fn filled(spaces: &[Space], value: &str) -> Arc<Memory> {
    let memory = Arc::new(Memory::new());
    for space in spaces {
        for key in ["a", "b", "c"] {
            put(&*memory, *space, key, value).await;
        }
    }
    memory
}

/// All entries of a database of records, including the mark.
async fn dump(storage: &dyn Storage) -> BTreeMap<(Space, Key), Bytes> {
    let mut all = BTreeMap::new();
    for space in spaces_of(DatabaseKind::Catalogue).into_iter().chain([record_copy::mark::MARKS]) {
        let entries = storage.scan(space, KeyRange::all(), 1000).await.unwrap();
        all.extend(entries.into_iter().map(|(key, value)| ((space, key), value)));
    }
    all
}

async fn copy_all(source: &Databases, target: &Databases, verify: bool) -> Result<(), Failure> {
    let mut progress = progress();
    let mut copier = Copier::begin(source, target, b"name", false, &mut progress).await?;
    let copied = copier.copy().await?;
    copier.compare(&copied, verify).await?;
    copier.finish().await
}

#[tokio::test]
async fn write_to_the_source_during_the_copy_is_detected() {
    for verify in [false, true] {
        let mut concurrent = Batch::new();
        for (space, key) in [(VERSIONS, "late"), (FILES, "a")] {
            concurrent.put(space, Key::new(key).unwrap(), "new");
        }
        let (mut writes_at, mut noticed) = (0, 0);
        loop {
            let database = filled(&[VERSIONS, FILES, LEASES], "old").await;
            let before = dump(&*database).await;
            let source = Arc::new(FaultyStorage::new(database.clone(), 1));
            // Another tracker writes to the source before one of the scans.
            let write = Fault::ConcurrentCommit(concurrent.clone());
            source.add(Operation::Scan, When::Nth(writes_at + 1), write);
            let target = Arc::new(Memory::new());
            let outcome = copy_all(&tracker(source.clone()), &tracker(target.clone()), verify).await;
            if source.faults_met() == 0 {
                outcome.unwrap();
                break;
            }
            match outcome {
                // The write was before the first or after the last read of the copy.
                Ok(()) => {
                    let copied = dump(&*target).await;
                    assert!(
                        copied == before || copied == dump(&*database).await,
                        "at {writes_at}: {copied:?}"
                    );
                }
                Err(failure) => {
                    assert!(failure.message.contains("source was modified"), "at {writes_at}: {failure}");
                    noticed += 1;
                }
            }
            writes_at += 1;
        }
        // All scans except the first and the last ones detect an earlier write.
        assert!(noticed * 2 > writes_at, "{noticed} of {writes_at}");
    }
}

#[tokio::test]
async fn later_copy_replaces_earlier_copy() {
    let source = tracker(filled(&[VERSIONS, FILES], "new").await);
    let (memory, mut one, mut other) = (Arc::new(Memory::new()), progress(), progress());
    let target = tracker(memory.clone());
    let mut first = Copier::begin(&source, &target, b"name", false, &mut one).await.unwrap();
    let copied = first.copy().await.unwrap();
    let mut second = Copier::begin(&source, &target, b"name", false, &mut other).await.unwrap();
    for outcome in
        [first.copy().await.map(drop), first.compare(&copied, true).await.and(first.finish().await)]
    {
        let failure = outcome.unwrap_err();
        assert!(failure.message.contains("another copy"), "{failure}");
    }
    let copied = second.copy().await.unwrap();
    second.compare(&copied, true).await.unwrap();
    second.finish().await.unwrap();
    assert_eq!(dump(&*memory).await, dump(&*source.all[0].storage).await);
}

#[tokio::test]
async fn interrupted_deletion_continues_in_next_run() {
    let source = tracker(filled(&[VERSIONS, FILES], "new").await);
    let mut nth = 1;
    loop {
        let old = filled(&[VERSIONS, LEASES, library::SPACES[0], library::SPACES[1]], "old").await;
        let before = dump(&*old).await;
        let faulty = Arc::new(FaultyStorage::new(old.clone(), 1));
        faulty.add(Operation::Commit, When::Nth(nth), Fault::Fail);
        let (target, mut progress) = (tracker(faulty.clone()), progress());
        let begun = Copier::begin(&source, &target, b"name", true, &mut progress).await;
        if faulty.faults_met() == 0 {
            assert!(begun.is_ok() && nth > 6, "{nth} commits");
            break;
        }
        assert!(begun.is_err());
        match copy_all(&source, &target, true).await {
            Ok(()) => assert_eq!(dump(&*old).await, dump(&*source.all[0].storage).await, "at commit {nth}"),
            // The fault was before the mark was stored, so nothing was deleted.
            Err(failure) => {
                assert!(failure.message.contains("not empty"), "at commit {nth}: {failure}");
                let left = dump(&*old)
                    .await
                    .into_iter()
                    .filter(|((space, _), _)| *space != record_copy::mark::MARKS);
                assert_eq!(left.collect::<BTreeMap<_, _>>(), before, "at commit {nth}");
            }
        }
        nth += 1;
    }
}
