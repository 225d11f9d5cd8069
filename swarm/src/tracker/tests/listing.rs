//! Lists of several catalogues that continue later.

use std::sync::Arc;

use super::{FakeLibrary, World};
use crate::tracker_client::listing::ListCursor;
use enjambre_core::Memory;

const A: &str = "memory://a:1";
const B: &str = "memory://b:1";

#[tokio::test(start_paused = true)]
async fn list_continues_at_a_cursor() {
    let world = World::new();
    let _a = world.tracker(A, &Arc::new(Memory::new())).await;
    let b = world.tracker(B, &Arc::new(Memory::new())).await;
    let (library, other) = (Arc::new(FakeLibrary::default()), Arc::new(FakeLibrary::default()));
    let (at_a, at_b) = (world.peer(&library, &[A]), world.peer(&other, &[B]));
    for n in 0..7 {
        at_a.publish(&library.outbox(&format!("n{n}"), n)).await.unwrap();
    }
    // One file of both, two versions of a name, and one with the same name and another content.
    for (name, n) in [("n1", 1), ("n3", 100), ("n3", 101), ("n9", 102)] {
        at_b.publish(&other.outbox(name, n)).await.unwrap();
    }
    let trackers = world.trackers(&[A, B]);
    let whole = async || {
        let (mut listing, mut files) = (trackers.list(""), Vec::new());
        while let Some(file) = listing.next().await.unwrap() {
            files.push(file);
        }
        assert_eq!(listing.cursor(), None);
        files
    };
    let expected = whole().await;
    assert_eq!(expected.len(), 10);
    for (count, page_size) in [(1, 1), (1, 3), (2, 1), (3, 2), (4, 1000)] {
        let (mut files, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let begin = cursor.map(|text| text.parse().unwrap());
            let mut listing = trackers.list_from("", begin, page_size);
            for _ in 0..count {
                files.extend(listing.next().await.unwrap());
            }
            cursor = listing.cursor().map(|cursor| cursor.to_string());
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(files, expected, "{count} files from pages of {page_size}");
    }
    assert!("AAAA".parse::<ListCursor>().is_err());
    // The list continues with the reachable catalogue, and later with both.
    let mut listing = trackers.list("");
    for file in &expected[..6] {
        assert_eq!(listing.next().await.unwrap().as_ref(), Some(file));
    }
    b.kill().await;
    let mut listing = trackers.list_from("", listing.cursor(), 1);
    assert_eq!(listing.next().await.unwrap().unwrap().name.as_str(), "n4");
}
