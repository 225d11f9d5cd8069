//! Copies between databases in memory: somebody else begins another copy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use enjambre_core::catalogue::layout::{FILES, VERSIONS};
use enjambre_core::storage::memory::Memory;
use enjambre_core::storage::value::{Batch, Durability, KeyRange};

use super::*;
use crate::cli::progress::Bar;
use crate::config::sections::NodeKind;
use crate::registry::Place;

/// A tracker without copies of its own.
fn tracker(storage: Arc<dyn Storage>) -> Databases {
    let (data_dir, kind, role) = (PathBuf::from("nowhere"), NodeKind::Tracker, Role::Records);
    let place = Place { data_dir, kind, store: false, role, scratch: None };
    Databases { all: vec![Database { name: "catalogue", meaning: Meaning::Catalogue, place, storage }] }
}

fn meter() -> Meter {
    Meter { bar: Bar::hidden(), ..Meter::new(false) }
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

/// Everything that may be in a database of records, the mark of a copy among it.
async fn dump(storage: &dyn Storage) -> BTreeMap<(Space, Key), Bytes> {
    let mut all = BTreeMap::new();
    for space in spaces_of(Role::Records).into_iter().chain([copy::mark::MARKS]) {
        let entries = storage.scan(space, KeyRange::all(), 1000).await.unwrap();
        all.extend(entries.into_iter().map(|(key, value)| ((space, key), value)));
    }
    all
}

#[tokio::test]
async fn the_copy_that_began_last_goes_on_and_the_other_one_ends() {
    let source = tracker(filled(&[VERSIONS, FILES], "new").await);
    let (memory, mut one, mut other) = (Arc::new(Memory::new()), meter(), meter());
    let target = tracker(memory.clone());
    let mut first = Copying::begin(&source, &target, b"name", false, &mut one).await.unwrap();
    let copied = first.copy().await.unwrap();
    let mut second = Copying::begin(&source, &target, b"name", false, &mut other).await.unwrap();
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
