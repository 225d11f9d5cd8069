use std::sync::Arc;

use super::*;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::{self, VERSIONS};
use crate::catalogue::pattern::Pattern;
use enjambre_core::{Batch, Durability, UnixMillis};

#[tokio::test]
async fn newest_version_is_found_and_listed_first() {
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

/// Size and kind are claims that a tracker cannot verify.
#[tokio::test]
async fn publication_with_other_metadata_keeps_the_entry_of_the_first() {
    let catalogue = open(&storage(), START).await;
    let (first, other) = (session(&catalogue, 1, START).await, session(&catalogue, 2, START).await);
    catalogue.publish(&first, &publication("a", file(1)), START).await.unwrap();
    let wrong = Publication { size: 99, kind: FileKind::Collection, ..publication("b", file(1)) };
    catalogue.publish(&other, &wrong, START).await.unwrap();
    let by_id = catalogue.find(&file(1).to_string(), START).await.unwrap();
    assert_eq!((by_id.size, by_id.kind, by_id.publisher), (10, FileKind::File, first.peer));
    let by_name = catalogue.find("b", START).await.unwrap();
    assert_eq!((by_name.size, by_name.kind, by_name.publisher), (99, FileKind::Collection, other.peer));
    // The first publisher may correct its own entry, and others once it no longer offers the file.
    let corrected = Publication { size: 11, ..publication("a", file(1)) };
    catalogue.publish(&first, &corrected, START).await.unwrap();
    assert_eq!(catalogue.find(&file(1).to_string(), START).await.unwrap().size, 11);
    catalogue.withdraw(&first, &[file(1)]).await.unwrap();
    catalogue.publish(&other, &wrong, START).await.unwrap();
    assert_eq!(catalogue.find(&file(1).to_string(), START).await.unwrap().size, 99);
}

#[tokio::test]
async fn exact_pattern_lists_the_versions_of_one_name() {
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    for (name, n) in [("a*?", 1), ("a*?", 2), ("a*?b", 3), ("a b", 4), ("ab", 5), ("a", 6)] {
        catalogue.publish(&peer, &publication(name, file(n)), START).await.unwrap();
    }
    let pattern = Pattern::exactly(&"a*?".parse().unwrap());
    let page = catalogue.list(&pattern, None, 10, None, START, |_| None).await.unwrap();
    let listed: Vec<_> = page.files.iter().map(|file| (file.name.as_str(), file.version)).collect();
    assert_eq!((listed, page.cursor), (vec![("a*?", 2), ("a*?", 1)], None));
    assert_eq!(all(&catalogue, &pattern, 1).await, page.files);
    assert_eq!(all(&catalogue, "a*?*", 10).await.len(), 5, "as a glob");
}

#[tokio::test]
async fn wrong_size_of_newest_version_does_not_stay() {
    let catalogue = open(&storage(), START).await;
    let (first, other) = (session(&catalogue, 1, START).await, session(&catalogue, 2, START).await);
    let wrong = Publication { size: 99, ..publication("a", file(1)) };
    catalogue.publish(&first, &wrong, START).await.unwrap();
    let published = catalogue.publish(&other, &publication("a", file(1)), START).await.unwrap();
    assert_eq!((published.version, published.new), (2, true));
    let found = catalogue.find("a", START).await.unwrap();
    assert_eq!((found.size, found.publisher), (10, other.peer));
    assert!(!catalogue.publish(&other, &publication("a", file(1)), START).await.unwrap().new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_publications_of_a_name_all_succeed() {
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
async fn list_of_many_names_is_complete_and_sorted() {
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
async fn list_without_matches_continues_after_10000_names() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let record = layout::encode(&layout::VersionRecord {
        id: file(1),
        size: 1,
        kind: FileKind::File,
        at: UnixMillis(1),
        by: PeerId::from_bytes([1; 32]),
        no: layout::FileNumber(1),
    });
    for first in (0..12_000).step_by(4000) {
        let mut batch = Batch::new();
        for n in first..first + 4000 {
            batch.put(VERSIONS, layout::version_key(&format!("n{n:05}").parse().unwrap(), 1), record.clone());
        }
        storage.commit(batch, Durability::Buffered).await.unwrap();
    }
    let page = catalogue.list("11999", None, 10, None, START, |_| None).await.unwrap();
    assert!(page.files.is_empty());
    let page = catalogue.list("11999", page.cursor.as_deref(), 10, None, START, |_| None).await.unwrap();
    assert_eq!((page.files.len(), page.cursor), (1, None));
}

#[tokio::test]
async fn foreign_list_cursor_is_rejected_or_does_not_widen() {
    let catalogue = open(&storage(), START).await;
    let peer = session(&catalogue, 1, START).await;
    for name in ["a", "b", "c"] {
        catalogue.publish(&peer, &publication(name, file(1)), START).await.unwrap();
    }
    for cursor in [&b""[..], &[1], &[2, b'a', 0, 1, 2, 3, 4, 5, 6, 7, 8], &[1; 400]] {
        let result = catalogue.list("", Some(cursor), 10, None, START, |_| None).await;
        assert!(matches!(result, Err(CatalogueError::Malformed { .. })), "{cursor:?}");
    }
    let cursor = catalogue.list("", None, 1, None, START, |_| None).await.unwrap().cursor.unwrap();
    let page = catalogue.list("c*", Some(&cursor), 10, None, START, |_| None).await.unwrap();
    assert_eq!(page.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[tokio::test]
async fn prefix_finds_one_file_or_lists_up_to_16() {
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
        panic!("two files match")
    };
    assert_eq!(matches.len(), 2);
    for n in 0x20..0x40 {
        catalogue.publish(&peer, &publication(&format!("x{n}"), id(n)), START).await.unwrap();
    }
    let Err(CatalogueError::Ambiguous { matches, more: true, .. }) = catalogue.find("abababab", START).await
    else {
        panic!("many files match")
    };
    assert_eq!(matches.len(), 16);
    for unknown in ["ababababff", "abababa", "a/b", "", &"0".repeat(64)] {
        let result = catalogue.find(unknown, START).await;
        assert!(matches!(result, Err(CatalogueError::NotFound { .. })), "{unknown:?}");
    }
}

#[tokio::test]
async fn lost_versions_return_with_their_numbers() {
    let (x, y, z) = (publication("a", file(1)), publication("a", file(2)), publication("a", file(3)));
    // The first version is stored. The second and the third one, which is the file of the first again, are lost.
    for order in [[(&x, 3), (&y, 2)], [(&y, 2), (&x, 3)]] {
        let catalogue = open(&storage(), START).await;
        let peers = [1, 2, 3].map(|peer| session(&catalogue, peer, START));
        let peers = futures::future::join_all(peers).await;
        catalogue.publish(&peers[0], &x, START).await.unwrap();
        for _ in 0..2 {
            for (publication, version) in order {
                let again =
                    catalogue.publish_or_repeat(&peers[1], publication, Some(version), START).await.unwrap();
                assert_eq!(again.version, version);
            }
        }
        let again = catalogue.publish_or_repeat(&peers[2], &x, Some(1), START).await.unwrap();
        assert_eq!((again.version, again.new), (3, false));
        let listed: Vec<_> = all(&catalogue, "a", 10).await.into_iter().map(|f| (f.version, f.id)).collect();
        assert_eq!(listed, [(3, x.id), (2, y.id), (1, x.id)]);
        assert_eq!(
            catalogue.find("a", START).await.unwrap().providers,
            3,
            "also of a version that was stored"
        );
        // Taken by another file, and too far ahead.
        assert_eq!(catalogue.publish_or_repeat(&peers[0], &z, Some(2), START).await.unwrap().version, 4);
        let far = catalogue.publish_or_repeat(&peers[0], &y, Some(u64::MAX), START).await.unwrap();
        assert_eq!((far.version, far.new), (5, true));
    }
}
