use std::sync::Arc;

use super::*;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::{self, META};
use crate::catalogue::stored_format;
use enjambre_core::{Batch, Durability, StorageError};

#[tokio::test]
async fn other_format_or_purpose_is_rejected() {
    for (v, what) in [(2, "catalogue"), (1, "library"), (0, "catalogue")] {
        let storage = storage();
        let mut batch = Batch::new();
        let record = layout::FormatRecord { v, what: what.to_owned() };
        batch.put(META, layout::meta_key("format"), layout::encode(&record));
        batch.put(META, layout::meta_key("catalogue"), vec![0; 16]);
        storage.commit(batch, Durability::Durable).await.unwrap();
        let told = stored_format(&*storage).await.map(drop);
        for outcome in [told, Catalogue::open(storage, RULES, START).await.map(drop)] {
            match outcome {
                Err(StorageError::NewerFormat { found: 2, supported: 1, .. }) if v == 2 => {}
                Err(StorageError::Corrupt { what, .. }) if v == 0 => {
                    assert!(what.contains("format version 0"), "{what}");
                }
                Err(StorageError::Corrupt { .. }) if what == "library" => {}
                other => panic!("{v} {what}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn catalogue_id_survives_reopening() {
    let storage = storage();
    let first = open(&storage, START).await.id();
    assert_eq!(open(&storage, START).await.id(), first);
    assert_ne!(open(&super::storage(), START).await.id(), first);
}

#[tokio::test]
async fn publish_beyond_max_versions_is_rejected() {
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
async fn entries_of_other_trackers_count_after_next_count() {
    let storage = storage();
    let rules = CatalogueRules { max_versions: 2, max_peers: 3, ..RULES };
    let open = async || Catalogue::open(Arc::clone(&storage), rules, START).await.unwrap();
    let (a, b) = (open().await, open().await);
    let by = session(&a, 1, START).await;
    let publish = async |catalogue: &Catalogue, n| {
        catalogue.publish(&by, &publication(&format!("n{n}"), file(n)), START).await
    };
    let open_session = async |catalogue: &Catalogue, peer| {
        catalogue.open_session(PeerId::from_bytes([peer; 32]), Vec::new(), START).await
    };
    for n in 0..2 {
        assert!(publish(&a, n).await.unwrap().new);
        open_session(&a, 2 + n as u8).await.unwrap();
    }
    assert!(matches!(publish(&a, 2).await, Err(CatalogueError::TooManyFiles)));
    assert!(matches!(open_session(&a, 4).await, Err(CatalogueError::TooManyPeers)));
    // The other tracker has not counted them yet.
    assert!(publish(&b, 2).await.unwrap().new);
    open_session(&b, 4).await.unwrap();
    b.count().await.unwrap();
    assert!(matches!(publish(&b, 3).await, Err(CatalogueError::TooManyFiles)));
    assert!(matches!(open_session(&b, 5).await, Err(CatalogueError::TooManyPeers)));
    open_session(&b, 1).await.expect("a known peer may always return");
}
