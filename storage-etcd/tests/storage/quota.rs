//! An exceeded quota of the server: commits fail with `Full`, and none of them is applied.

use std::sync::Arc;

use enjambre_core::{Durability, StorageError};
use enjambre_tests::etcd::{OPTIONS, Server};
use tokio::task::JoinSet;

use crate::fixture::{A, insert, key, open_shared, settings, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_beyond_the_quota_is_refused() {
    const QUOTA: &str = "--quota-backend-bytes=16777216";
    let Some(server) = Server::start("etcd with a quota", &[OPTIONS[0], OPTIONS[1], QUOTA]) else { return };
    let settings = settings(server.url());
    let storages = [open_shared(&settings).await.unwrap(), open_shared(&settings).await.unwrap()];
    // Concurrent writers, so that etcd reports the quota for commits that are applied as well.
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let storage = Arc::clone(&storages[writer as usize % 2]);
        let durability = if writer < 4 { Durability::Buffered } else { Durability::Durable };
        writers.spawn(async move {
            for number in (writer * 1000).. {
                match storage.commit(insert(number, vec![1; 256 * 1024]), durability).await {
                    Ok(()) => {}
                    Err(error @ StorageError::Full { .. }) => {
                        assert!(text(&error).contains("--quota-backend-bytes"), "{}", text(&error));
                        return number;
                    }
                    Err(error) => panic!("{number}: {}", text(&error)),
                }
            }
            unreachable!("the quota is exceeded before")
        });
    }
    for refused in writers.join_all().await {
        for number in refused / 1000 * 1000..=refused {
            let is_present = storages[0].get(A, &[key(number)]).await.unwrap()[0].is_some();
            assert_eq!(is_present, number != refused, "{number} of {refused}");
        }
    }
    // The last commit of a close is refused as well.
    for storage in storages {
        let closed = storage.close().await;
        assert!(matches!(closed, Ok(()) | Err(StorageError::Full { .. })), "{closed:?}");
    }
}
