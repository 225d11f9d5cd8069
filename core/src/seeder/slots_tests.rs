//! Who finds a slot while somebody with many connections takes them.

use std::sync::Arc;

use super::*;
use crate::library::content::ContentStore;
use crate::library::settings::LibrarySettings;
use crate::storage::memory::Disk;
use crate::transport::ConnectionHandle;

const SLOTS: usize = 16;

async fn seeder() -> Seeder {
    let store = ContentStore::Database(Arc::new(Disk::new().open()));
    let library =
        Library::open(Arc::new(Disk::new().open()), store, LibrarySettings::default()).await.unwrap();
    let settings = SeederSettings { slots: SLOTS, ..SeederSettings::default() };
    Seeder::new(library, Arc::new(RateLimit::new(None)), settings)
}

/// A connection from an address, or from nowhere.
fn connection(number: u64, from: Option<u8>) -> PeerInfo {
    let address = from.map(|last| IpAddr::from([10, 0, 0, last]));
    let handle = ConnectionHandle::default();
    PeerInfo { connection: ConnectionId(number), handle, address, identity: None }
}

#[tokio::test]
async fn an_address_takes_half_of_what_others_leave() {
    let seeder = seeder().await;
    let mut held = Vec::new();
    let mut taken = Vec::new();
    let mut number = 0;
    for from in [1, 2, 3, 4] {
        let before = held.len();
        for _ in 0..SLOTS {
            number += 1;
            let peer = connection(number, Some(from));
            match seeder.take_place(&peer, RequestId(1)) {
                Ok(place) => held.push(place),
                Err(error) => assert_eq!(error.code, ErrorCode::Busy),
            }
        }
        taken.push(held.len() - before);
    }
    assert_eq!(taken, [8, 4, 2, 1]);
    // Who has a slot may ask for more with it, and the last one is for somebody else.
    assert!(seeder.take_place(&connection(1, Some(1)), RequestId(2)).is_ok());
    let last = seeder.take_place(&connection(1000, Some(5)), RequestId(1)).unwrap();
    assert!(seeder.take_place(&connection(1001, Some(6)), RequestId(1)).is_err(), "all are taken");
    drop((held, last));
    assert!(seeder.turns.lock().is_empty());
}

#[tokio::test]
async fn those_without_an_address_take_all_of_them() {
    let seeder = seeder().await;
    let take = |number| seeder.take_place(&connection(number, None), RequestId(1));
    let held: Vec<_> = (0..SLOTS as u64).map(|number| take(number).unwrap()).collect();
    assert!(take(1000).is_err());
    drop(held);
}
