//! Pages whose entries differ in size.

use enjambre_core::{Durability, KeyRange};
use enjambre_tests::etcd::Server;

use crate::fixture::{A, insert, key, open_shared, settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_after_many_small_ones_end_the_page() {
    const MIB: usize = 1024 * 1024;
    let Some(server) = Server::shared("etcd scans") else { return };
    let storage = open_shared(&settings(server.url())).await.unwrap();
    for number in 0..100 {
        let size = if number < 40 { 1 } else { MIB };
        storage.commit(insert(number, vec![7; size]), Durability::Buffered).await.unwrap();
    }
    let page = storage.scan(A, KeyRange::all(), 1000).await.unwrap();
    let sizes: Vec<usize> = page.iter().map(|(_, value)| value.len()).collect();
    assert_eq!(sizes, [vec![1; 40], vec![MIB]].concat());
    let next = storage.scan(A, KeyRange::all().after(&page[40].0), 1000).await.unwrap();
    assert_eq!((next.len(), &next[0].0), (1, &key(41)));
    let keys: Vec<_> = (40..100).map(key).collect();
    let values = storage.get(A, &keys).await.unwrap();
    assert!(values.iter().all(|value| value.as_ref().is_some_and(|value| value.len() == MIB)));
    storage.close().await.unwrap();
}
