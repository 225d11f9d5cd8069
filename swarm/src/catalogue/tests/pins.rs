use super::*;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::PinId;
use crate::catalogue::pins::MAX_PINS_PER_PEER;

const QUOTA: u64 = 200;

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

/// The pin of a file by a peer.
fn id(n: u64, by: u8) -> PinId {
    PinId { file: file(n), by: peer(by) }
}

/// Pins a file for a peer and reserves space for it.
async fn pin(catalogue: &Catalogue, n: u64, by: u8, size: u64) -> Result<bool, CatalogueError> {
    catalogue.pin(&id(n, by), START).await?;
    catalogue.resize_pin(&id(n, by), size, QUOTA).await
}

#[tokio::test]
async fn quota_limits_all_pins_together() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    pin(&catalogue, 1, 1, 100).await.unwrap();
    pin(&catalogue, 2, 2, 60).await.unwrap();
    let full = pin(&catalogue, 3, 3, 41).await;
    assert!(matches!(full, Err(CatalogueError::QuotaFull { reserved: 160, quota: QUOTA, .. })));
    assert_eq!(catalogue.pin(&id(1, 1), START).await.unwrap().size, 100, "an existing pin is unchanged");
    pin(&catalogue, 3, 3, 40).await.unwrap();
    assert!(catalogue.set_complete(&id(3, 3), true).await.unwrap());
    assert!(catalogue.pinned(&id(3, 3)).await.unwrap().unwrap().complete);
    assert_eq!(catalogue.pins(None).await.unwrap().len(), 3);
    assert!(catalogue.unpin(&id(1, 1)).await.unwrap());
    assert!(!catalogue.unpin(&id(1, 1)).await.unwrap());
    let reserved = open(&storage, START).await.reserved().await.unwrap();
    assert_eq!((reserved.bytes, reserved.pins), (100, 2));
}

#[tokio::test]
async fn new_pin_reserves_no_space() {
    let catalogue = open(&storage(), START).await;
    catalogue.pin(&id(1, 1), START).await.unwrap();
    let reserved = catalogue.reserved().await.unwrap();
    assert_eq!((reserved.bytes, reserved.pins), (0, 1));
}

#[tokio::test]
async fn one_peer_reserves_at_most_half_of_the_quota() {
    let catalogue = open(&storage(), START).await;
    pin(&catalogue, 1, 1, 70).await.unwrap();
    let full = pin(&catalogue, 2, 1, 31).await;
    assert!(matches!(full, Err(CatalogueError::QuotaFull { reserved: 70, quota: 100, .. })));
    pin(&catalogue, 3, 2, 100).await.unwrap();
    assert!(catalogue.unpin(&id(1, 1)).await.unwrap());
    pin(&catalogue, 2, 1, 100).await.unwrap();
}

#[tokio::test]
async fn number_of_pins_of_a_peer_is_limited() {
    let catalogue = open(&storage(), START).await;
    for n in 0..MAX_PINS_PER_PEER {
        catalogue.pin(&id(n, 1), START).await.unwrap();
    }
    let more = catalogue.pin(&id(MAX_PINS_PER_PEER, 1), START).await;
    assert!(matches!(more, Err(CatalogueError::TooManyPins(MAX_PINS_PER_PEER))));
    catalogue.pin(&id(MAX_PINS_PER_PEER, 2), START).await.unwrap();
    catalogue.unpin(&id(0, 1)).await.unwrap();
    catalogue.pin(&id(0, 1), START).await.unwrap();
}

#[tokio::test]
async fn pins_of_a_peer_are_listed_in_pages() {
    let catalogue = open(&storage(), START).await;
    let session = session(&catalogue, 1, START).await;
    catalogue.publish(&session, &publication("a", file(4)), START).await.unwrap();
    for n in 0..30 {
        pin(&catalogue, n, (n % 2) as u8, n % 5).await.unwrap();
        // Other peers, also of the same files.
        pin(&catalogue, n, 2 + (n % 3) as u8, 0).await.unwrap();
    }
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = catalogue.pins_of(peer(0), after, 4).await.unwrap();
        assert!(page.len() <= 4);
        listed.extend(page);
        after = next;
        if after.is_none() {
            break;
        }
    }
    let mut expected: Vec<_> = (0..30).step_by(2).map(file).collect();
    expected.sort_unstable();
    assert_eq!(listed.iter().map(|pin| pin.id).collect::<Vec<_>>(), expected);
    let named: Vec<_> = listed.iter().filter(|pin| pin.name.is_some()).collect();
    assert_eq!((named.len(), named[0].id, named[0].reserved), (1, file(4), 4));
}

#[tokio::test]
async fn resized_pin_stays_in_quota_and_frees_its_space() {
    let catalogue = open(&storage(), START).await;
    pin(&catalogue, 1, 1, 10).await.unwrap();
    pin(&catalogue, 2, 1, 30).await.unwrap();
    assert!(catalogue.resize_pin(&id(1, 1), 70, QUOTA).await.unwrap());
    assert_eq!(catalogue.reserved().await.unwrap().bytes, 100);
    assert!(matches!(
        catalogue.resize_pin(&id(2, 1), 31, QUOTA).await,
        Err(CatalogueError::QuotaFull { reserved: 70, .. })
    ));
    let second = id(2, 1);
    assert_eq!(catalogue.pinned(&second).await.unwrap().unwrap().size, 30);
    assert_eq!(catalogue.max_pin_size(&second, QUOTA).await.unwrap(), 30, "the share is exhausted");
    assert!(!catalogue.resize_pin(&id(3, 1), 1, QUOTA).await.unwrap());
    assert!(catalogue.unpin(&id(1, 1)).await.unwrap());
    let reserved = catalogue.reserved().await.unwrap();
    assert_eq!((reserved.bytes, reserved.pins), (30, 1));
    assert_eq!(catalogue.max_pin_size(&second, QUOTA).await.unwrap(), 100, "the share includes its own size");
    pin(&catalogue, 3, 2, 90).await.unwrap();
    pin(&catalogue, 4, 3, 50).await.unwrap();
    assert_eq!(catalogue.max_pin_size(&second, QUOTA).await.unwrap(), 60, "so does the free space");
}

#[tokio::test]
async fn shared_replica_counts_for_each_peer_and_once_in_the_quota() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    for by in 1..=3 {
        pin(&catalogue, 1, by, 90).await.unwrap();
    }
    let totals = async |by: u8| {
        let [all, file, peer] = [
            catalogue.reserved().await.unwrap(),
            catalogue.reserved_for(&file(1)).await.unwrap(),
            catalogue.reserved_by(&peer(by)).await.unwrap(),
        ];
        assert_eq!(all, file, "it is the only file");
        [(file.bytes, file.pins), (peer.bytes, peer.pins)]
    };
    assert_eq!(totals(2).await, [(90, 3), (90, 1)]);
    assert!(matches!(pin(&catalogue, 2, 1, 11).await, Err(CatalogueError::QuotaFull { reserved: 90, .. })));
    assert!(catalogue.unpin(&id(2, 1)).await.unwrap());
    assert_eq!(catalogue.max_pin_size(&id(1, 3), QUOTA).await.unwrap(), 100);

    // While it is fetched, the reservations of the peers differ. Once it is complete, its size is known.
    catalogue.resize_pin(&id(1, 1), 95, QUOTA).await.unwrap();
    assert_eq!(totals(1).await, [(95, 3), (95, 1)]);
    pin(&catalogue, 2, 4, 100).await.unwrap();
    assert_eq!(catalogue.max_pin_size(&id(1, 5), QUOTA).await.unwrap(), 100);
    assert!(catalogue.unpin(&id(2, 4)).await.unwrap());
    catalogue.resize_pin(&id(1, 1), 80, QUOTA).await.unwrap();
    assert_eq!(totals(1).await, [(80, 3), (80, 1)]);

    // The replica remains as long as a peer pins it.
    assert!(catalogue.unpin(&id(1, 1)).await.unwrap());
    assert!(!catalogue.unpin(&id(1, 1)).await.unwrap());
    assert_eq!(totals(1).await, [(80, 2), (0, 0)]);
    assert!(catalogue.unpin(&id(1, 2)).await.unwrap());
    assert!(open(&storage, START).await.pinned(&id(1, 3)).await.unwrap().is_some());
    assert!(catalogue.unpin(&id(1, 3)).await.unwrap());
    assert_eq!(totals(3).await, [(0, 0), (0, 0)]);
}
