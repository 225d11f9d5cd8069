use super::*;
use crate::catalogue::error::CatalogueError;

#[tokio::test]
async fn quota_limits_all_pins_together() {
    let storage = storage();
    let catalogue = open(&storage, START).await;
    let by = PeerId::from_bytes([1; 32]);
    let pin = async |n, size| catalogue.pin(file(n), size, 100, by, START).await;
    pin(1, 60).await.unwrap();
    assert!(matches!(pin(2, 41).await, Err(CatalogueError::QuotaFull { reserved: 60, .. })));
    assert_eq!(pin(1, 60).await.unwrap().size, 60, "an existing pin reserves nothing more");
    pin(2, 40).await.unwrap();
    assert!(catalogue.set_complete(&file(2), true).await.unwrap());
    assert!(catalogue.pinned(&file(2)).await.unwrap().unwrap().complete);
    assert_eq!(catalogue.pins(None).await.unwrap().len(), 2);
    assert!(catalogue.unpin(&file(1)).await.unwrap());
    assert!(!catalogue.unpin(&file(1)).await.unwrap());
    let reserved = open(&storage, START).await.reserved().await.unwrap();
    assert_eq!((reserved.bytes, reserved.pins), (40, 1));
}

#[tokio::test]
async fn resized_pin_stays_in_quota_and_frees_its_space() {
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
