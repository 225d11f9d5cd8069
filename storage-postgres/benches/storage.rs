//! The throughput of the storage under the load of a tracker and of a peer, with a server on the same machine.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use enjambre_core::{Batch, Durability, Key, Place, Role, Space, Storage, Tenancy};
use enjambre_storage_postgres::{PostgresSettings, open};
use enjambre_testkit::storage::load;
use enjambre_tests::postgres::{Server, fresh_schema};
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

struct Fixture {
    runtime: Runtime,
    storages: Vec<Arc<dyn Storage>>,
    _folder: TempDir,
    _server: Arc<Server>,
}

/// Opens a schema several times, like several trackers.
fn fixtures(role: Role, count: usize) -> Fixture {
    let server = Server::shared("PostgreSQL benches").expect("PostgreSQL is installed");
    let runtime = Runtime::new().expect("a runtime");
    let folder = TempDir::new().expect("a temporary folder");
    let settings = PostgresSettings {
        url: server.url().try_into().expect("a URL"),
        schema: Some(fresh_schema()),
        ..PostgresSettings::default()
    };
    let opened = || runtime.block_on(open(&settings, &Place::new(folder.path(), Tenancy::Shared), role));
    let storages = (0..count).map(|_| opened().expect("the storage opens")).collect();
    Fixture { runtime, storages, _folder: folder, _server: server }
}

fn fixture(role: Role) -> Fixture {
    fixtures(role, 1)
}

#[divan::bench(args = [1, 16, 64], sample_count = 5, sample_size = 1)]
fn durable_commits(bencher: Bencher<'_, '_>, writers: u64) {
    let each = 512 / writers;
    bencher.counter(ItemsCount::new(512u32)).with_inputs(|| fixture(Role::Records)).bench_refs(|fixture| {
        fixture
            .runtime
            .block_on(load::durable_commits(&fixture.storages[0], writers, each))
            .expect("the commit succeeds");
    });
}

#[divan::bench(args = [1, 2, 4], sample_count = 5, sample_size = 1)]
fn durable_commits_of_16_writers_per_tracker(bencher: Bencher<'_, '_>, count: usize) {
    let inputs = || fixtures(Role::Records, count);
    bencher.counter(ItemsCount::new(512 * count)).with_inputs(inputs).bench_refs(|fixture| {
        fixture.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for (number, storage) in fixture.storages.iter().enumerate() {
                for writer in 0..16u8 {
                    let storage = storage.clone();
                    tasks.spawn(async move { commit(&*storage, number as u8, writer, 32).await });
                }
            }
            tasks.join_all().await;
        });
    });
}

/// Commits small records one by one under keys of one writer.
async fn commit(storage: &dyn Storage, number: u8, writer: u8, count: u8) {
    for record in 0..count {
        let mut batch = Batch::new();
        let key = Key::new(vec![number, writer, record]).expect("3 bytes");
        batch.put(Space::new("records"), key, vec![record; 200]);
        storage.commit(batch, Durability::Durable).await.expect("the commit succeeds");
    }
}

#[divan::bench(args = [64, 256, 1024], sample_count = 3, sample_size = 1)]
fn ingest_128_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 128 << 20;
    bencher.counter(BytesCount::new(BYTES)).with_inputs(|| fixture(Role::Content)).bench_refs(|fixture| {
        fixture
            .runtime
            .block_on(load::ingest(&fixture.storages[0], BYTES, kib << 10))
            .expect("the write succeeds");
    });
}

#[divan::bench(sample_count = 20)]
fn get_1000_records(bencher: Bencher<'_, '_>) {
    let fixture = fixture(Role::Records);
    fixture
        .runtime
        .block_on(load::durable_commits(&fixture.storages[0], 16, 64))
        .expect("the commit succeeds");
    bencher.counter(ItemsCount::new(1000u32)).bench_local(|| {
        fixture
            .runtime
            .block_on(load::read_one_by_one(&fixture.storages[0], false, 1000))
            .expect("the read succeeds")
    });
}

#[divan::bench(sample_count = 20)]
fn scan_1000_records(bencher: Bencher<'_, '_>) {
    let fixture = fixture(Role::Records);
    fixture
        .runtime
        .block_on(load::durable_commits(&fixture.storages[0], 16, 64))
        .expect("the commit succeeds");
    bencher.counter(ItemsCount::new(1024u32)).bench_local(|| {
        fixture.runtime.block_on(load::scan_records(&fixture.storages[0])).expect("the read succeeds")
    });
}

#[divan::bench(args = [64, 256, 1024], sample_count = 5)]
fn read_64_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 64 << 20;
    let fixture = fixture(Role::Content);
    fixture
        .runtime
        .block_on(load::ingest(&fixture.storages[0], BYTES, kib << 10))
        .expect("the write succeeds");
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
        let count = (BYTES / (kib << 10)) as u64;
        fixture
            .runtime
            .block_on(load::read_one_by_one(&fixture.storages[0], true, count))
            .expect("the read succeeds")
    });
}
