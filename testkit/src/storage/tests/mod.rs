//! The suite with the in-memory storage, the adapter and the fault wrapper, and with incorrect backends that the suite
//! must detect.

mod defects;
mod incorrect;
mod log;

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::{Embedded, EmbeddedSettings, Storage, StorageError};

use super::runner::CASE_TIMEOUT;
use super::*;
use crate::storage::fake::FakeDisk;
use crate::storage::fault::FaultyStorage;
use enjambre_core::storage::memory::Disk;

/// A builder with an in-memory disk.
struct WithDisk<F>(F);

impl<F, Fut> Builder for WithDisk<F>
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
async fn memory_storage_conforms() {
    run_all(&WithDisk(async |disk: Disk| Ok(Arc::new(disk.open()) as Arc<dyn Storage>))).await;
}

#[tokio::test]
async fn fault_wrapper_without_rules_conforms() {
    run_all(&WithDisk(async |disk: Disk| {
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
async fn embedded_adapter_conforms() {
    run_all(&OnFake).await;
}

#[test]
fn cases_have_unique_names_and_requirements() {
    let all: Vec<&Case> = CASES.iter().chain(crash::CASES).collect();
    for found in &all {
        assert_eq!(case(found.name), Some(*found), "unique name");
        assert!(found.requirement.ends_with('.') && found.requirement.len() > 30, "{found:?}");
    }
    for group in [Group::Core, Group::Concurrency, Group::Reopen, Group::Limits, Group::Crash] {
        assert!(all.iter().any(|case| case.group == group), "{group}");
    }
    assert_eq!(case("another"), None);
}

#[tokio::test]
async fn outcome_lists_operations() {
    let memory = WithDisk(async |disk: Disk| Ok(Arc::new(disk.open()) as Arc<dyn Storage>));
    let outcome = run(&memory, case("concurrent_updates_are_not_lost").unwrap()).await;
    assert!(outcome.result.is_ok() && outcome.operations > 300, "{outcome:?}");
    let outcome = run(&memory, case("batches_are_atomic_after_kill").unwrap()).await;
    assert!(
        outcome.result.unwrap_err().to_string().contains("batches_are_atomic_after_kill"),
        "a crash case"
    );
    let closed = WithDisk(async |_| Err(StorageError::Closed));
    let failure = run(&closed, &CASES[0]).await.result.unwrap_err();
    assert_eq!(failure.operations, ["open -> error: storage closed"]);
}
