//! The kit on the reference, on the adapter and through the fault layer; and backends that are wrong on purpose, which
//! the kit must find out.

mod flaws;
mod log;
mod wrong;

use super::*;
use crate::storage::embedded::fake::FakeDisk;
use crate::storage::embedded::{Embedded, EmbeddedSettings};
use crate::storage::fault::FaultyStorage;
use crate::storage::memory::Disk;

/// A builder on a shared disk in memory.
struct On<F>(F);

impl<F, Fut> Builder for On<F>
where
    F: Fn(Disk) -> Fut + Sync,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send,
{
    type Place = Disk;

    fn place(&self) -> Disk {
        Disk::new()
    }

    async fn open(&self, place: &Disk) -> Result<Arc<dyn Storage>, StorageError> {
        (self.0)(place.clone()).await
    }
}

#[tokio::test]
async fn memory_keeps_its_obligations() {
    run_all(&On(async |disk: Disk| Ok(Arc::new(disk.open()) as Arc<dyn Storage>))).await;
}

#[tokio::test]
async fn the_fault_layer_without_faults_keeps_its_obligations() {
    run_all(&On(async |disk: Disk| {
        Ok(Arc::new(FaultyStorage::new(Arc::new(disk.open()), 0)) as Arc<dyn Storage>)
    }))
    .await;
}

#[derive(Default)]
struct OnFake;

impl Builder for OnFake {
    type Place = FakeDisk;

    fn place(&self) -> FakeDisk {
        FakeDisk::default()
    }

    async fn open(&self, place: &FakeDisk) -> Result<Arc<dyn Storage>, StorageError> {
        let place = place.clone();
        Ok(Arc::new(Embedded::open(EmbeddedSettings::default(), move || place.open()).await?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_adapter_keeps_its_obligations() {
    run_all(&OnFake).await;
}

#[test]
fn every_case_says_what_it_checks() {
    let all: Vec<&Case> = CASES.iter().chain(crash::CASES).collect();
    for found in &all {
        assert_eq!(case(found.name), Some(*found), "its name is like no other");
        assert!(found.obligation.ends_with('.') && found.obligation.len() > 30, "{found:?}");
    }
    for group in [Group::Core, Group::Concurrency, Group::Reopen, Group::Limits, Group::Crash] {
        assert!(all.iter().any(|case| case.group == group), "{group}");
    }
    assert_eq!(case("another"), None);
}

#[tokio::test]
async fn an_outcome_says_what_was_done() {
    let memory = On(async |disk: Disk| Ok(Arc::new(disk.open()) as Arc<dyn Storage>));
    let outcome = run(&memory, case("no_update_is_lost").unwrap()).await;
    assert!(outcome.result.is_ok() && outcome.operations > 300, "{outcome:?}");
    let outcome = run(&memory, case("a_kill_tears_no_batch").unwrap()).await;
    assert!(outcome.result.unwrap_err().to_string().contains("a_kill_tears_no_batch"), "another level");
    let closed = On(async |_| Err(StorageError::Closed));
    let failure = run(&closed, &CASES[0]).await.result.unwrap_err();
    assert_eq!(failure.operations, ["open -> error: the storage is closed"]);
}
