//! A catalogue that a program of format 1 wrote, brought forward.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::one::FromOne;
use super::*;
use crate::catalogue::tests::{RULES, publication, session};
use crate::catalogue::{Catalogue, layout};
use crate::format::Step;
use crate::model::id::{FileId, PeerId};
use crate::model::record::FileRecord;
use crate::protocol::message::SessionId;
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

const LARGE: &str = "42e0b5713fbb6b06850b59873e171e0e32c8d990b7531fd1a50d5e42d79691bc";
const KEPT: &str = "8b8f2f58b67080fc27ace123b081cb5646cb75f0b4a935f84bf3310c6b3c4917";
const FIRST: &str = "5db76509978750d61fa8e8f10f7d109786488ef5959c94a15e62c8aeaab6f2f1";
const SECOND: &str = "76cd71cfe00462e0c8b52b178394699854d9c184c702957df13ba7b45f1d9c51";
/// What the tracker stopped at, and a little later.
const NOW: u64 = 1_795_389_495_500;

type Dump = BTreeMap<(Space, Bytes), Bytes>;

/// What `tests/fixtures/catalogue-1.txt` has.
fn fixture() -> Dump {
    let text = include_str!("../../../../tests/fixtures/catalogue-1.txt");
    let bytes = |text: &str| Bytes::from(hex::decode(text).unwrap());
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let space = Space::parse(words.next().unwrap()).unwrap();
        ((space, bytes(words.next().unwrap())), bytes(words.next().unwrap()))
    };
    text.lines().map(entry).collect()
}

async fn load(dump: &Dump) -> Arc<Memory> {
    let memory = Arc::new(Memory::new());
    let mut batch = Batch::new();
    for ((space, key), value) in dump {
        batch.put(*space, Key::new(key.clone()).unwrap(), value.clone());
    }
    memory.commit(batch, Durability::Buffered).await.unwrap();
    memory
}

async fn dump(storage: &dyn Storage) -> Dump {
    let mut dump = Dump::new();
    for space in layout::SPACES {
        for (key, value) in storage.scan(*space, KeyRange::all(), 10_000).await.unwrap() {
            dump.insert((*space, key.into_bytes()), value);
        }
    }
    dump
}

/// What every way of bringing the fixture forward ends with.
async fn expected() -> Dump {
    let memory = load(&fixture()).await;
    formats().bring_forward(&*memory).await.unwrap();
    dump(&*memory).await
}

async fn open(memory: &Arc<Memory>) -> Catalogue {
    Catalogue::open(memory.clone(), RULES, NOW).await.unwrap()
}

async fn list(catalogue: &Catalogue) -> Vec<FileRecord> {
    catalogue.list("", None, 100, NOW).await.unwrap().files
}

#[tokio::test]
async fn what_was_in_it_is_in_it() {
    let memory = load(&fixture()).await;
    let catalogue = open(&memory).await;
    let listed = list(&catalogue).await;
    let shown: Vec<_> = listed.iter().map(|f| (f.name.as_str(), f.version, f.size, f.providers)).collect();
    assert_eq!(
        shown,
        [
            ("folder", 1, 120, 1),
            ("kept.txt", 1, 20, 1),
            ("large again.bin", 1, 300_000, 2),
            ("large.bin", 1, 300_000, 2),
            ("small.txt", 2, 13, 1),
            ("small.txt", 1, 12, 1),
        ]
    );
    assert_eq!(listed[3].publisher.to_string(), FIRST);
    assert_eq!(listed[3].published_ms, 1_795_389_487_205);
    let found = catalogue.find(LARGE, NOW).await.unwrap();
    assert_eq!((found.name.as_str(), found.publisher.to_string()), ("large again.bin", SECOND.to_owned()));
    let kept: FileId = KEPT.parse().unwrap();
    let pin = catalogue.pinned(&kept).await.unwrap().unwrap();
    assert_eq!((pin.size, pin.held, pin.by.to_string()), (20, true, SECOND.to_owned()));
    let reserved = catalogue.reserved().await.unwrap();
    assert_eq!((reserved.bytes, reserved.pins), (20, 1));
}

#[tokio::test]
async fn a_peer_goes_on_with_its_session_and_new_numbers_belong_to_nobody_else() {
    let memory = load(&fixture()).await;
    let catalogue = open(&memory).await;
    let id = hex::decode("12319a61044277d26c3c7588e1b12a7b").unwrap();
    let id = SessionId(id.try_into().unwrap());
    let first = catalogue.renew(id, NOW).await.unwrap();
    assert_eq!(first.peer.to_string(), FIRST);
    catalogue.publish(&first, &publication("new", FileId::from_bytes([9; 32])), NOW).await.unwrap();
    let third = session(&catalogue, 3, NOW).await;
    catalogue.publish(&third, &publication("newer", FileId::from_bytes([8; 32])), NOW).await.unwrap();
    let counts: Vec<_> = list(&catalogue).await.iter().map(|file| file.providers).collect();
    assert_eq!(counts, [1, 1, 2, 2, 1, 1, 1, 1]);
    // Who left is out, and who says hello again has what it had.
    let second: PeerId = SECOND.parse().unwrap();
    catalogue.hello(second, vec!["zmq://10.0.0.2:1".parse().unwrap()], NOW + 1).await.unwrap();
    assert_eq!(catalogue.find("kept.txt", NOW + 1).await.unwrap().providers, 1);
    catalogue.leave(id, NOW + 2).await.unwrap();
    assert_eq!(catalogue.find("large.bin", NOW + 10_000).await.unwrap().providers, 1);
}

#[tokio::test]
async fn nothing_of_the_old_format_is_left_and_the_size_of_its_batches_does_not_matter() {
    let expected = expected().await;
    let lengths = |space: Space| {
        let keys = expected.keys().filter(move |(of, _)| *of == space);
        keys.map(|(_, key)| key.len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(layout::LEASES), [6; 3]);
    assert_eq!(lengths(layout::PEERS), [32; 3]);
    assert_eq!(lengths(layout::PROVIDERS), [12; 7]);
    assert_eq!(lengths(layout::OFFERS), [12; 7]);
    assert!(expected.iter().filter(|((space, _), _)| *space == layout::SESSIONS).all(|(_, v)| v.len() == 6));
    for page in [1, 2, 5] {
        let memory = load(&fixture()).await;
        with_steps(&[&FromOne { page }]).bring_forward(&*memory).await.unwrap();
        assert_eq!(dump(&*memory).await, expected, "{page}");
    }
}

#[tokio::test]
async fn it_can_end_at_any_point_and_goes_on_from_there() {
    let expected = expected().await;
    for fault in
        [Fault::Fail, Fault::Indeterminate { applied: true }, Fault::Indeterminate { applied: false }]
    {
        let mut nth = 1;
        loop {
            let memory = load(&fixture()).await;
            let faulty = FaultyStorage::new(memory.clone(), 1);
            faulty.add(Operation::Commit, When::Nth(nth), fault);
            let small = FromOne { page: 3 };
            let ended = with_steps(&[&small]).bring_forward(&faulty).await.is_err();
            let mark = memory.get(META, &[layout::meta_key("format")]).await.unwrap().remove(0).unwrap();
            assert_eq!(ended, !formats().is_newest(&mark).unwrap());
            if faulty.faults_met() == 0 {
                break;
            }
            // What the next start does, whatever the size of its batches.
            formats().bring_forward(&*memory).await.unwrap();
            assert_eq!(dump(&*memory).await, expected, "{fault:?} at commit {nth}");
            nth += 1;
        }
        assert!(nth > 10, "{nth} commits");
    }
}

#[tokio::test(start_paused = true)]
async fn trackers_that_start_at_once_bring_it_forward_together() {
    let expected = expected().await;
    for seed in 0..20 {
        let memory = load(&fixture()).await;
        let mut tasks = tokio::task::JoinSet::new();
        for tracker in 0..3 {
            let faulty = FaultyStorage::new(memory.clone(), seed * 3 + tracker);
            for operation in [Operation::Get, Operation::Scan, Operation::Commit] {
                faulty.add(operation, When::Chance(0.4), Fault::Delay(Duration::from_millis(1 + tracker)));
            }
            tasks.spawn(async move {
                let small = FromOne { page: 2 };
                let steps: [&dyn Step; 1] = [&small];
                with_steps(&steps).bring_forward(&faulty).await
            });
        }
        for outcome in tasks.join_all().await {
            outcome.unwrap();
        }
        assert_eq!(dump(&*memory).await, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn a_program_that_does_not_know_the_step_does_not_open_what_is_under_way() {
    let memory = load(&fixture()).await;
    let faulty = FaultyStorage::new(memory.clone(), 1);
    faulty.add(Operation::Commit, When::Nth(2), Fault::Fail);
    with_steps(&[&FromOne { page: 1 }]).bring_forward(&faulty).await.unwrap_err();
    let mark = memory.get(META, &[layout::meta_key("format")]).await.unwrap().remove(0).unwrap();
    // Formats 1 and 2 alike wanted this word before they looked at the number.
    let record: layout::FormatRecord = layout::decode(META, &mark).unwrap();
    assert_eq!((record.v, &*record.what), (1, MOVING));
    assert!(read(&layout::encode(&layout::FormatRecord { note: None, ..record })).is_err());
    assert!(matches!(
        with_steps(&[]).is_newest(&mark),
        Err(StorageError::Corrupt { .. } | StorageError::NewerFormat { .. })
    ));
}

#[tokio::test]
async fn damaged_entries_take_nothing_else_along() {
    for space in [layout::VERSIONS, layout::FILES, layout::PROVIDERS, layout::LEASES, layout::SESSIONS] {
        let mut damaged = fixture();
        let mut keys = damaged.keys().filter(|(of, _)| *of == space);
        // The one file whose name is not asked for below.
        let kept = |(_, key): &&(Space, Bytes)| hex::encode(key) == KEPT;
        let key = if space == layout::FILES { keys.find(kept) } else { keys.next() }.unwrap().clone();
        damaged.insert(key, Bytes::from_static(b"\xa1"));
        let memory = load(&damaged).await;
        let catalogue = open(&memory).await;
        let found = catalogue.find("small.txt", NOW).await.unwrap();
        assert_eq!(found.version, 2, "{space:?}");
        assert_eq!(catalogue.find("large.bin", NOW).await.unwrap().size, 300_000, "{space:?}");
        if space != layout::LEASES {
            assert_eq!(catalogue.find("large.bin", NOW).await.unwrap().providers, 2, "{space:?}");
        }
    }
}
