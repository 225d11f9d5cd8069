//! The catalogue over the storage in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::error::CatalogueError;
use super::layout::{FILES, LEASES, META, PINS, PROVIDERS, SESSIONS, VERSIONS};
use super::leases::LeaseRules;
use super::peers::Session;
use super::{Catalogue, CatalogueRules, layout, stored_format};
use crate::model::id::{FileId, PeerId};
use crate::model::record::{FileKind, FileRecord, Offer, Publication};
use crate::protocol::message::SessionId;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::layers::prefix::PrefixedStorage;
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};

pub(super) const RULES: CatalogueRules = CatalogueRules {
    leases: LeaseRules { lease: 30_000, retention: 1_000_000, settle: 120_000 },
    fresh: 5_000,
    max_peers: 1000,
    max_versions: 1_000_000,
    cache: 1 << 20,
};
pub(super) const START: u64 = 1_000_000_000;

pub(super) fn storage() -> Arc<dyn Storage> {
    Arc::new(Memory::new())
}

pub(super) async fn open(storage: &Arc<dyn Storage>, now: u64) -> Catalogue {
    Catalogue::open(Arc::clone(storage), RULES, now).await.unwrap()
}

pub(super) fn file(n: u64) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

pub(super) fn publication(name: &str, id: FileId) -> Publication {
    Publication { name: name.parse().unwrap(), id, size: 10, kind: FileKind::File }
}

pub(super) async fn session(catalogue: &Catalogue, peer: u8, now: u64) -> Session {
    let endpoint = format!("zmq://10.0.0.{peer}:7710").parse().unwrap();
    let id = catalogue.hello(PeerId::from_bytes([peer; 32]), vec![endpoint], now).await.unwrap();
    catalogue.authorize(id, now).await.unwrap()
}

pub(super) async fn count(catalogue: &Catalogue, n: u64, now: u64) -> u32 {
    catalogue.find(&file(n).to_string(), now).await.unwrap().providers
}

async fn all(catalogue: &Catalogue, pattern: &str, limit: usize) -> Vec<FileRecord> {
    let (mut files, mut cursor) = (Vec::new(), None);
    loop {
        let page = catalogue.list(pattern, cursor.as_deref(), limit, START).await.unwrap();
        assert!(page.files.len() <= limit);
        let mut encoded = Vec::new();
        ciborium::into_writer(&page.files, &mut encoded).unwrap();
        assert!(encoded.len() <= 60 * 1024, "a page fits a header");
        files.extend(page.files);
        cursor = page.cursor;
        if cursor.is_none() {
            return files;
        }
    }
}

#[tokio::test]
async fn a_newer_version_of_a_name_is_found_and_the_older_ones_are_listed_after_it() {
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    for (n, new) in [(1, true), (2, true), (2, false)] {
        let published = catalogue.publish(&peer, &publication("a", file(n)), START).await.unwrap();
        assert_eq!((published.version, published.new), (n, new));
    }
    assert_eq!(catalogue.find("a", START).await.unwrap().id, file(2));
    let listed: Vec<_> = all(&catalogue, "", 10).await.into_iter().map(|f| (f.version, f.id)).collect();
    assert_eq!(listed, [(2, file(2)), (1, file(1))]);
    let by_id = catalogue.find(&file(1).to_string(), START).await.unwrap();
    assert_eq!((by_id.version, by_id.providers), (1, 1));
    assert_eq!(catalogue.versions(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_publish_one_name_at_the_same_moment_all_land() {
    let storage = storage();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let storage = Arc::clone(&storage);
        tasks.spawn(async move {
            let catalogue = open(&storage, START).await;
            let peer = session(&catalogue, n, START).await;
            catalogue.publish(&peer, &publication("same", file(u64::from(n))), START).await.unwrap().version
        });
    }
    let mut versions = tasks.join_all().await;
    versions.sort_unstable();
    assert_eq!(versions, (1..=16).collect::<Vec<u64>>());
    let catalogue = open(&storage, START).await;
    let mut ids: Vec<_> = all(&catalogue, "same", 100).await.into_iter().map(|f| f.id).collect();
    ids.sort_unstable();
    let mut expected: Vec<_> = (0..16).map(file).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn thousands_of_names_are_listed_page_by_page_each_once_and_in_order() {
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    let mut names: Vec<String> = (0..3000).map(|n| format!("{:03}-ærø-日{n}", n % 1000)).collect();
    for (n, name) in (0..).zip(&names) {
        catalogue.publish(&peer, &publication(name, file(n)), START).await.unwrap();
    }
    names.sort_unstable();
    for limit in [7, 1000] {
        let listed: Vec<_> =
            all(&catalogue, "", limit).await.iter().map(|f| f.name.as_str().to_owned()).collect();
        assert_eq!(listed, names);
    }
    assert_eq!(all(&catalogue, "日29", 1000).await.len(), 11 + 100);
    assert_eq!(all(&catalogue, "017-*", 1000).await.len(), 3);
    assert_eq!(all(&catalogue, "?17-ærø-日?", 1000).await.len(), 0);
    let expected = names.iter().filter(|name| name.starts_with("01") && name.contains("-日1")).count();
    assert_eq!(all(&catalogue, "01?-*-日1*", 1000).await.len(), expected);
    assert_eq!(all(&catalogue, "nothing", 1000).await.len(), 0);
}

#[tokio::test]
async fn a_search_that_finds_nothing_stops_after_ten_thousand_names_and_goes_on_from_there() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let record = layout::encode(&layout::VersionRecord {
        v: 1,
        id: file(1),
        size: 1,
        kind: FileKind::File,
        at: 1,
        by: PeerId::from_bytes([1; 32]),
        no: layout::FileNumber(1),
    });
    let mut batch = Batch::new();
    for n in 0..12_000 {
        batch.put(VERSIONS, layout::version_key(&format!("n{n:05}").parse().unwrap(), 1), record.clone());
    }
    storage.commit(batch, Durability::Buffered).await.unwrap();
    let page = catalogue.list("11999", None, 10, START).await.unwrap();
    assert!(page.files.is_empty());
    let page = catalogue.list("11999", page.cursor.as_deref(), 10, START).await.unwrap();
    assert_eq!((page.files.len(), page.cursor), (1, None));
}

#[tokio::test]
async fn a_cursor_of_another_making_is_refused_and_one_of_another_pattern_shows_nothing_more() {
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    for name in ["a", "b", "c"] {
        catalogue.publish(&peer, &publication(name, file(1)), START).await.unwrap();
    }
    for cursor in [&b""[..], &[1], &[2, b'a', 0, 1, 2, 3, 4, 5, 6, 7, 8], &[1; 400]] {
        let result = catalogue.list("", Some(cursor), 10, START).await;
        assert!(matches!(result, Err(CatalogueError::Malformed { .. })), "{cursor:?}");
    }
    let cursor = catalogue.list("", None, 1, START).await.unwrap().cursor.unwrap();
    let page = catalogue.list("c*", Some(&cursor), 10, START).await.unwrap();
    assert_eq!(page.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[tokio::test]
async fn a_prefix_finds_the_one_file_or_lists_up_to_sixteen() {
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    let id = |n: u8| {
        let mut id = [0xab; 32];
        id[4] = n;
        FileId::from_bytes(id)
    };
    catalogue.publish(&peer, &publication("x0", id(0)), START).await.unwrap();
    assert_eq!(catalogue.find("ABABABAB", START).await.unwrap().id, id(0));
    catalogue.publish(&peer, &publication("x1", id(0x1f)), START).await.unwrap();
    assert_eq!(catalogue.find("abababab1", START).await.unwrap().id, id(0x1f));
    let Err(CatalogueError::Ambiguous { matches, more: false, .. }) = catalogue.find("abababab", START).await
    else {
        panic!("two files begin so")
    };
    assert_eq!(matches.len(), 2);
    for n in 0x20..0x40 {
        catalogue.publish(&peer, &publication(&format!("x{n}"), id(n)), START).await.unwrap();
    }
    let Err(CatalogueError::Ambiguous { matches, more: true, .. }) = catalogue.find("abababab", START).await
    else {
        panic!("many files begin so")
    };
    assert_eq!(matches.len(), 16);
    for nothing in ["ababababff", "abababa", "a/b", "", &"0".repeat(64)] {
        let result = catalogue.find(nothing, START).await;
        assert!(matches!(result, Err(CatalogueError::NotFound { .. })), "{nothing:?}");
    }
}

#[tokio::test]
async fn offers_of_unknown_files_are_named_and_left_out() {
    let catalogue = open(&storage(), START).await;
    let (a, b) = (session(&catalogue, 1, START).await, session(&catalogue, 2, START).await);
    catalogue.publish(&a, &publication("a", file(1)), START).await.unwrap();
    let offers = [1, 2].map(|n| Offer { id: file(n), size: 10, complete: false });
    assert_eq!(catalogue.announce(&b, &offers, START).await.unwrap(), [file(2)]);
    assert_eq!(count(&catalogue, 1, START).await, 2);
    assert!(catalogue.providers(&file(2), START).await.unwrap().unwrap_or_default().is_empty());
    catalogue.withdraw(&b, &[file(1), file(9)]).await.unwrap();
    let left = catalogue.providers(&file(1), START).await.unwrap().unwrap_or_default();
    assert_eq!(left.iter().map(|claim| claim.peer).collect::<Vec<_>>(), [a.peer]);
}

#[tokio::test]
async fn a_peer_that_stays_away_is_cleared_away_with_its_claims_but_not_before() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let peer = session(&catalogue, 1, START).await;
    for n in 0..1200 {
        catalogue.publish(&peer, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let entries = async |space| storage.scan(space, KeyRange::all(), 2000).await.unwrap().len();
    assert_eq!(catalogue.sweep_peers(START + 999_999).await.unwrap().peers, 0);
    assert_eq!(entries(PROVIDERS).await, 1200);
    assert_eq!(catalogue.sweep_peers(START + 1_000_000).await.unwrap().peers, 1);
    for space in [PROVIDERS, layout::OFFERS, LEASES, SESSIONS, layout::PEERS, layout::CLEARED] {
        assert_eq!(entries(space).await, 0, "{space:?}");
    }
}

#[tokio::test]
async fn who_was_removed_by_another_tracker_leaves_no_claims_behind() {
    let storage = storage();
    let (here, there) = (open(&storage, START).await, open(&storage, START).await);
    let peer = session(&here, 1, START).await;
    for n in [1, 2] {
        here.publish(&peer, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    here.withdraw(&peer, &[file(2)]).await.unwrap();
    let late = START + 1_000_000;
    assert_eq!(there.sweep_peers(late).await.unwrap().peers, 1);
    // This tracker looked a moment ago, and still knows the session.
    let offers = [1, 2].map(|n| Offer { id: file(n), size: 10, complete: true });
    let announced = here.announce(&peer, &offers, late).await;
    assert!(matches!(announced, Err(CatalogueError::Unauthorized)), "{announced:?}");
    let published = here.publish(&peer, &publication("n1", file(1)), late).await;
    assert!(matches!(published, Err(CatalogueError::Unauthorized)), "{published:?}");
    for space in [PROVIDERS, layout::OFFERS, layout::CLEARED, layout::PEERS, SESSIONS] {
        assert!(storage.scan(space, KeyRange::all(), 10).await.unwrap().is_empty(), "{space:?}");
    }
}

#[tokio::test]
async fn claims_of_a_former_session_go_after_a_while_unless_they_are_made_again() {
    let catalogue = open(&storage(), START).await;
    let first = session(&catalogue, 1, START).await;
    for n in [1, 2] {
        catalogue.publish(&first, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let second = session(&catalogue, 1, START).await;
    catalogue.announce(&second, &[Offer { id: file(1), size: 10, complete: true }], START).await.unwrap();
    let id = catalogue.cache.lock().session_of(second.number);
    catalogue.renew(id, START + 115_000).await.unwrap();
    assert_eq!(catalogue.sweep_peers(START + 119_000).await.unwrap().claims, 0);
    assert_eq!(catalogue.sweep_peers(START + 120_001).await.unwrap().claims, 1);
    assert_eq!(count(&catalogue, 1, START + 120_001).await, 1);
    assert_eq!(count(&catalogue, 2, START + 120_001).await, 0);
}

#[tokio::test]
async fn a_file_that_nobody_offers_is_forgotten_in_time_and_one_that_comes_back_is_not() {
    const FORGET: u64 = 10_000_000;
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    for (name, id) in [("a", 1), ("a2", 1), ("b", 2)] {
        catalogue.publish(&peer, &publication(name, file(id)), START).await.unwrap();
    }
    let dead = START + 30_000;
    assert_eq!(catalogue.forget_files(FORGET, dead).await.unwrap(), 0);
    assert_eq!(catalogue.forget_files(FORGET, dead + FORGET - 1).await.unwrap(), 0);
    assert_eq!(catalogue.find("a", dead).await.unwrap().providers, 0);
    // Somebody offers b again, which takes the mark away.
    let back = session(&catalogue, 2, dead + FORGET - 1).await;
    catalogue.announce(&back, &[Offer { id: file(2), size: 10, complete: true }], START).await.unwrap();
    assert_eq!(catalogue.forget_files(FORGET, dead + FORGET).await.unwrap(), 1);
    let left: Vec<_> = all(&catalogue, "", 10).await.into_iter().map(|f| f.id).collect();
    assert_eq!(left, [file(2)]);
    assert!(catalogue.file(&file(1), dead + FORGET).await.unwrap().is_none());
}

#[tokio::test]
async fn several_trackers_on_one_database_are_one() {
    super::several::run_all(async || {
        let storage = storage();
        [Arc::clone(&storage), Arc::clone(&storage), storage]
    })
    .await;
}

#[tokio::test]
async fn a_session_that_another_tracker_voided_withdraws_nothing() {
    let storage = storage();
    let (here, there) = (open(&storage, START).await, open(&storage, START).await);
    let former = session(&here, 1, START).await;
    here.publish(&former, &publication("a", file(1)), START).await.unwrap();
    let newer = session(&there, 1, START + 1).await;
    let offer = Offer { id: file(1), size: 10, complete: true };
    there.announce(&newer, &[offer], START + 1).await.unwrap();
    // This tracker still remembers the former session as a valid one.
    here.authorize(former.id, START + 1).await.unwrap();
    let refused = here.withdraw(&former, &[file(1)]).await;
    assert!(matches!(refused, Err(CatalogueError::Unauthorized)), "{refused:?}");
    assert_eq!(count(&open(&storage, START + 1).await, 1, START + 1).await, 1);
    there.withdraw(&newer, &[file(1)]).await.unwrap();
    assert_eq!(count(&open(&storage, START + 1).await, 1, START + 1).await, 0);
}

#[tokio::test]
async fn a_number_is_given_once_by_all_trackers_together_whatever_becomes_of_the_commits() {
    let inner = Memory::new();
    let uncertain = Arc::new(Uncertain { inner, armed: AtomicBool::new(false), applies: true });
    let storage: Arc<dyn Storage> = uncertain.clone();
    let mut given = std::collections::HashSet::new();
    for round in 0..4 {
        // The ones before are gone as in a crash.
        let trackers = [open(&storage, START).await, open(&storage, START).await];
        for _ in 0..super::NUMBERS + 2 {
            for tracker in &trackers {
                assert!(given.insert(tracker.next_number().await.unwrap()), "round {round}");
            }
        }
        let (a, b) = (open(&storage, START).await, open(&storage, START).await);
        let (a, b) = tokio::join!(a.next_number(), b.next_number());
        assert!(given.insert(a.unwrap()) && given.insert(b.unwrap()));
        let unsure = open(&storage, START).await;
        uncertain.armed.store(true, Ordering::SeqCst);
        assert!(unsure.next_number().await.is_err());
        assert!(given.insert(unsure.next_number().await.unwrap()));
    }
}

#[tokio::test]
async fn a_quota_holds_for_all_pins_together_and_is_freed() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let by = PeerId::from_bytes([1; 32]);
    let pin = async |n, size| catalogue.pin(file(n), size, 100, by, START).await;
    pin(1, 60).await.unwrap();
    assert!(matches!(pin(2, 41).await, Err(CatalogueError::QuotaFull { reserved: 60, .. })));
    assert_eq!(pin(1, 60).await.unwrap().size, 60, "a pin that is there takes nothing more");
    pin(2, 40).await.unwrap();
    assert!(catalogue.set_held(&file(2), true).await.unwrap());
    assert!(catalogue.pinned(&file(2)).await.unwrap().unwrap().held);
    assert_eq!(catalogue.pins(None).await.unwrap().len(), 2);
    assert!(catalogue.unpin(&file(1)).await.unwrap());
    assert!(!catalogue.unpin(&file(1)).await.unwrap());
    let reserved = open(&storage, START).await.reserved().await.unwrap();
    assert_eq!((reserved.bytes, reserved.pins), (40, 1));
}

#[tokio::test]
async fn the_catalogue_takes_no_more_versions_than_it_may_have() {
    let rules = CatalogueRules { max_versions: 2, ..RULES };
    let catalogue = Catalogue::open(storage(), rules, START).await.unwrap();
    let peer = session(&catalogue, 1, START).await;
    for (n, name) in ["a", "b"].into_iter().enumerate() {
        catalogue.publish(&peer, &publication(name, file(n as u64)), START).await.unwrap();
    }
    for name in ["a", "c"] {
        let refused = catalogue.publish(&peer, &publication(name, file(9)), START).await;
        assert!(matches!(refused, Err(CatalogueError::TooManyFiles)), "{refused:?}");
    }
    assert!(!catalogue.publish(&peer, &publication("b", file(1)), START).await.unwrap().new);
}

#[tokio::test]
async fn what_another_tracker_takes_counts_from_the_next_count_on() {
    let storage = storage();
    let rules = CatalogueRules { max_versions: 2, max_peers: 3, ..RULES };
    let open = async || Catalogue::open(Arc::clone(&storage), rules, START).await.unwrap();
    let (a, b) = (open().await, open().await);
    let by = session(&a, 1, START).await;
    let publish = async |catalogue: &Catalogue, n| {
        catalogue.publish(&by, &publication(&format!("n{n}"), file(n)), START).await
    };
    let hello = async |catalogue: &Catalogue, peer| {
        catalogue.hello(PeerId::from_bytes([peer; 32]), Vec::new(), START).await
    };
    for n in 0..2 {
        assert!(publish(&a, n).await.unwrap().new);
        hello(&a, 2 + n as u8).await.unwrap();
    }
    assert!(matches!(publish(&a, 2).await, Err(CatalogueError::TooManyFiles)));
    assert!(matches!(hello(&a, 4).await, Err(CatalogueError::TooManyPeers)));
    // The other one does not know of it yet.
    assert!(publish(&b, 2).await.unwrap().new);
    hello(&b, 4).await.unwrap();
    b.count().await.unwrap();
    assert!(matches!(publish(&b, 3).await, Err(CatalogueError::TooManyFiles)));
    assert!(matches!(hello(&b, 5).await, Err(CatalogueError::TooManyPeers)));
    hello(&b, 1).await.expect("who is there already may always come back");
}

#[tokio::test]
async fn a_pin_grows_within_the_quota_and_frees_all_that_it_took() {
    let catalogue = open(&storage(), START).await;
    let by = PeerId::from_bytes([1; 32]);
    let pin = async |n, size| catalogue.pin(file(n), size, 100, by, START).await;
    pin(1, 10).await.unwrap();
    pin(2, 30).await.unwrap();
    assert!(catalogue.resize_pin(&file(1), 70, 100).await.unwrap());
    assert_eq!(catalogue.reserved().await.unwrap().bytes, 100);
    assert!(matches!(
        catalogue.resize_pin(&file(2), 31, 100).await,
        Err(CatalogueError::QuotaFull { reserved: 70, .. })
    ));
    assert_eq!(catalogue.pinned(&file(2)).await.unwrap().unwrap().size, 30);
    assert!(!catalogue.resize_pin(&file(3), 1, 100).await.unwrap());
    assert!(catalogue.unpin(&file(1)).await.unwrap());
    let reserved = catalogue.reserved().await.unwrap();
    assert_eq!((reserved.bytes, reserved.pins), (30, 1));
}

#[tokio::test]
async fn an_unknown_format_and_another_content_are_refused() {
    // The last one is on its way to a format that only a newer program knows.
    for (v, what) in [(3, "catalogue"), (2, "library"), (0, "catalogue"), (2, "catalogue under migration")] {
        let storage = storage();
        let mut batch = Batch::new();
        let note = what.contains("migration").then(|| Bytes::from_static(b"far"));
        let record = layout::FormatRecord { v, what: what.to_owned(), note };
        batch.put(META, layout::meta_key("format"), layout::encode(&record));
        batch.put(META, layout::meta_key("catalogue"), vec![0; 16]);
        storage.commit(batch, Durability::Durable).await.unwrap();
        let told = stored_format(&*storage).await.map(drop);
        for outcome in [told, Catalogue::open(storage, RULES, START).await.map(drop)] {
            match outcome {
                Err(StorageError::NewerFormat { found: 3, supported: 2, .. }) if what != "library" => {}
                Err(StorageError::Corrupt { what, .. }) if v == 0 => {
                    assert!(what.contains("format 0"), "{what}");
                }
                Err(StorageError::Corrupt { .. }) if what == "library" => {}
                other => panic!("{v} {what}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn catalogues_with_different_prefixes_in_one_database_do_not_see_each_other() {
    let database = storage();
    let at = |prefix: &str| -> Arc<dyn Storage> {
        Arc::new(PrefixedStorage::new(Arc::clone(&database), prefix.parse().unwrap()))
    };
    let [north, south] = [open(&at("north"), START).await, open(&at("south"), START).await];
    assert_ne!(north.id(), south.id());
    let peer = session(&north, 1, START).await;
    north.publish(&peer, &publication("a", file(1)), START).await.unwrap();
    north.pin(file(1), 10, 100, peer.peer, START).await.unwrap();
    assert!(matches!(south.find("a", START).await, Err(CatalogueError::NotFound { .. })));
    assert!(matches!(south.authorize(peer.id, START).await, Err(CatalogueError::Unauthorized)));
    assert_eq!(south.reserved().await.unwrap().bytes, 0);
    assert_eq!(south.living(START).await.unwrap(), 0);
    let again = open(&at("north"), START).await;
    assert_eq!((again.id(), again.find("a", START).await.unwrap().providers), (north.id(), 1));
    assert_eq!(again.reserved().await.unwrap().bytes, 10);
    // Each has a format of its own.
    let mut batch = Batch::new();
    let record = layout::FormatRecord { v: 3, what: "catalogue".to_owned(), note: None };
    batch.put(META, layout::meta_key("format"), layout::encode(&record));
    at("south").commit(batch, Durability::Durable).await.unwrap();
    let refused = Catalogue::open(at("south"), RULES, START).await;
    assert!(matches!(refused, Err(StorageError::NewerFormat { found: 3, .. })));
    open(&at("north"), START).await;
    assert!(database.scan(META, KeyRange::all(), 1).await.unwrap().is_empty(), "nobody is without a prefix");
}

#[tokio::test]
async fn the_id_of_a_catalogue_stays() {
    let storage = storage();
    let first = open(&storage, START).await.id();
    assert_eq!(open(&storage, START).await.id(), first);
    assert_ne!(open(&self::storage(), START).await.id(), first);
}

#[tokio::test]
async fn damaged_records_are_an_error_and_no_panic() {
    for space in [
        VERSIONS,
        FILES,
        PROVIDERS,
        LEASES,
        SESSIONS,
        PINS,
        layout::OFFERS,
        layout::FILE_NAMES,
        layout::PEERS,
    ] {
        for value in
            [&b""[..], b"\xff", b"\xa1\x61v\x01", &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]
        {
            let storage = storage();
            let catalogue = open(&storage, START).await;
            let peer = session(&catalogue, 1, START).await;
            catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
            catalogue.pin(file(1), 1, 10, peer.peer, START).await.unwrap();
            let mut batch = Batch::new();
            for (key, _) in storage.scan(space, KeyRange::all(), 10).await.unwrap() {
                batch.put(space, key, Bytes::copy_from_slice(value));
            }
            batch.put(space, Key::new(&b"\x00?"[..]).unwrap(), Bytes::copy_from_slice(value));
            storage.commit(batch, Durability::Buffered).await.unwrap();
            let fresh = open(&storage, START).await;
            let results = [
                fresh.find("a", START).await.map(drop),
                fresh.find(&file(1).to_string(), START).await.map(drop),
                fresh.list("", None, 10, START).await.map(drop),
                fresh.providers(&file(1), START).await.map(drop),
                fresh.publish(&peer, &publication("a", file(1)), START).await.map(drop),
                fresh.pins(None).await.map(drop),
                fresh.sweep_peers(START + 2_000_000).await.map(drop).map_err(CatalogueError::from),
                fresh.forget_files(1, START + 2_000_000).await.map(drop).map_err(CatalogueError::from),
                fresh.hello(peer.peer, Vec::new(), START).await.map(drop),
            ];
            for error in results.into_iter().filter_map(Result::err) {
                let allowed = matches!(
                    error,
                    CatalogueError::Storage(StorageError::Corrupt { .. }) | CatalogueError::Unauthorized
                );
                assert!(allowed, "{space:?}: {error:?}");
            }
        }
    }
}

/// Applies a commit, or not, and then says that it does not know.
#[derive(Debug)]
struct Uncertain {
    inner: Memory,
    armed: AtomicBool,
    applies: bool,
}

#[async_trait]
impl Storage for Uncertain {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.inner.get(space, keys).await
    }
    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.inner.scan(space, range, limit).await
    }
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        if self.armed.swap(false, Ordering::SeqCst) {
            if self.applies {
                self.inner.commit(batch, durability).await?;
            }
            return Err(StorageError::Indeterminate { source: "cut".into() });
        }
        self.inner.commit(batch, durability).await
    }
    async fn sync(&self) -> Result<(), StorageError> {
        self.inner.sync().await
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }
}

#[tokio::test]
async fn a_commit_of_which_the_outcome_is_not_known_lands_exactly_once() {
    for applies in [false, true] {
        let inner = Memory::new();
        let uncertain = Arc::new(Uncertain { inner, armed: AtomicBool::new(false), applies });
        let storage: Arc<dyn Storage> = uncertain.clone();
        let catalogue = open(&storage, START).await;
        let peer = session(&catalogue, 1, START).await;
        uncertain.armed.store(true, Ordering::SeqCst);
        let published = catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
        assert_eq!((published.version, published.new), (1, true), "applied: {applies}");
        assert_eq!(all(&catalogue, "", 10).await.len(), 1);
        uncertain.armed.store(true, Ordering::SeqCst);
        catalogue.pin(file(1), 10, 100, peer.peer, START).await.unwrap();
        assert_eq!(catalogue.reserved().await.unwrap().bytes, 10);
        uncertain.armed.store(true, Ordering::SeqCst);
        assert!(catalogue.unpin(&file(1)).await.unwrap());
        assert_eq!(catalogue.reserved().await.unwrap().bytes, 0);
    }
}

#[tokio::test]
async fn nothing_is_promised_that_may_not_be_durable_and_nobody_waits_for_it_again_and_again() {
    let faults = Arc::new(FaultyStorage::new(storage(), 1));
    let storage: Arc<dyn Storage> = faults.clone();
    let catalogue = open(&storage, START).await;
    let peer = session(&catalogue, 1, START).await;
    catalogue.publish(&peer, &publication("a", file(1)), START).await.unwrap();
    faults.add(Operation::Commit, When::Always, Fault::Indeterminate { applied: true });
    faults.add(Operation::Sync, When::Always, Fault::Unavailable);
    let failed = |outcome: Result<(), CatalogueError>| {
        assert!(matches!(outcome, Err(CatalogueError::Storage(_))), "{outcome:?}");
    };
    // A new one, the same again, which adds no version, and what else is to last.
    failed(catalogue.publish(&peer, &publication("b", file(2)), START).await.map(drop));
    failed(catalogue.publish(&peer, &publication("b", file(2)), START).await.map(drop));
    failed(catalogue.pin(file(1), 10, 100, peer.peer, START).await.map(drop));
    failed(catalogue.authority().await.map(drop));
    assert!(faults.faults_met() <= 8, "{}", faults.faults_met());

    faults.clear();
    assert!(!catalogue.publish(&peer, &publication("b", file(2)), START).await.unwrap().new);
    assert_eq!(catalogue.pin(file(1), 10, 100, peer.peer, START).await.unwrap().size, 10);
    catalogue.authority().await.unwrap();
}

#[derive(Debug, Clone, Copy, Default)]
struct Modelled {
    session: Option<SessionId>,
    renewed: u64,
    claims: [bool; 3],
}

/// Any order of what peers do, of time and of restarts: who claims a file and renewed in time is named, who left,
/// withdrew or is silent for a lease is not. After a restart the silent have one more lease.
async fn any_order(steps: Vec<(u8, usize, usize)>) {
    const LEASE: u64 = RULES.leases.lease;
    let storage = storage();
    let mut catalogue = open(&storage, START).await;
    let publisher = session(&catalogue, 9, START).await;
    for n in 0..3 {
        catalogue.publish(&publisher, &publication(&format!("n{n}"), file(n)), START).await.unwrap();
    }
    let endpoint: crate::model::endpoint::Endpoint = "zmq://10.0.0.1:1".parse().unwrap();
    let peer = |n: usize| PeerId::from_bytes([u8::try_from(n).unwrap(); 32]);
    let mut model = [Modelled::default(); 3];
    let (mut now, mut restarted) = (START, None);
    for (kind, who, what) in steps {
        let modelled = &mut model[who];
        let id = file(what as u64);
        match (kind, modelled.session) {
            (0, _) => {
                let new = catalogue.hello(peer(who), vec![endpoint.clone()], now).await.unwrap();
                (modelled.session, modelled.renewed) = (Some(new), now);
            }
            (1 | 2, Some(session)) => {
                let session = catalogue.authorize(session, now).await.unwrap();
                if kind == 1 {
                    let offer = Offer { id, size: 10, complete: true };
                    assert!(catalogue.announce(&session, &[offer], START).await.unwrap().is_empty());
                } else {
                    catalogue.withdraw(&session, &[id]).await.unwrap();
                }
                modelled.claims[what] = kind == 1;
            }
            (3, Some(session)) => {
                catalogue.renew(session, now).await.unwrap();
                modelled.renewed = now;
            }
            (4, Some(session)) => {
                catalogue.leave(session, now).await.unwrap();
                modelled.session = None;
            }
            (5..=7, _) => {
                now += [1_000, 7_000, 16_000][what];
                catalogue.flush(now).await.unwrap();
            }
            (8, _) => {
                catalogue.flush(now).await.unwrap();
                now += [0, 20_000, 200_000][what];
                catalogue = open(&storage, now).await;
                restarted = Some(now);
            }
            _ => {}
        }
        for n in 0..3 {
            let named = catalogue.providers_for(&file(n), true, now).await.unwrap().unwrap_or_default();
            if let Some(remembered) = super::remembered_tests::remembered(&catalogue, n, now) {
                let mut expected: Vec<_> = named.iter().map(|provider| provider.peer).collect();
                expected.sort_unstable();
                assert_eq!(remembered, expected, "what is remembered");
            }
            for (at, modelled) in model.iter().enumerate() {
                let listed = named.iter().any(|provider| provider.peer == peer(at));
                let claimed = modelled.claims[n as usize] && modelled.session.is_some();
                let alive = now < modelled.renewed + LEASE;
                let grace = restarted.is_some_and(|since| now < since + LEASE);
                assert!(
                    !listed || (claimed && (alive || grace)),
                    "peer {at}, file {n}: {modelled:?} at {now}"
                );
                assert!(listed || !(claimed && alive), "peer {at}, file {n}: {modelled:?} at {now}");
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn whatever_happens_in_whatever_order_the_living_are_named_and_no_others(
        steps in proptest::collection::vec((0u8..9, 0usize..3, 0usize..3), 1..60),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(any_order(steps));
    }
}
