//! How fast the storage is under the loads of a tracker and of a peer, with a server on the same machine.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use enjambre_core::storage::conformance::load;
use enjambre_core::storage::value::{Batch, Durability, Key, Space};
use enjambre_core::storage::{Role, Storage};
use enjambre_storage_postgres::{PostgresSettings, Tenancy, open};
use enjambre_tests::postgres::{Server, fresh_schema};
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

struct Place {
    runtime: Runtime,
    storages: Vec<Arc<dyn Storage>>,
    _folder: TempDir,
    _server: Arc<Server>,
}

/// Several storages on one schema, as several trackers have them.
fn places(role: Role, count: usize) -> Place {
    let server = Server::shared("the bench of PostgreSQL").expect("there is a server");
    let runtime = Runtime::new().expect("a runtime");
    let folder = TempDir::new().expect("a temporary folder");
    let settings = PostgresSettings {
        url: server.url().try_into().expect("a URL"),
        schema: Some(fresh_schema()),
        ..PostgresSettings::default()
    };
    let opened = || runtime.block_on(open(&settings, folder.path(), role, Tenancy::Shared));
    let storages = (0..count).map(|_| opened().expect("the storage opens")).collect();
    Place { runtime, storages, _folder: folder, _server: server }
}

fn place(role: Role) -> Place {
    places(role, 1)
}

#[divan::bench(args = [1, 16, 64], sample_count = 5, sample_size = 1)]
fn durable_commits(bencher: Bencher<'_, '_>, writers: u64) {
    let each = 512 / writers;
    bencher.counter(ItemsCount::new(512u32)).with_inputs(|| place(Role::Records)).bench_refs(|place| {
        place.runtime.block_on(load::durable_commits(&place.storages[0], writers, each)).expect("it commits");
    });
}

#[divan::bench(args = [1, 2, 4], sample_count = 5, sample_size = 1)]
fn durable_commits_of_16_writers_at_each_of_several(bencher: Bencher<'_, '_>, count: usize) {
    let places = || places(Role::Records, count);
    bencher.counter(ItemsCount::new(512 * count)).with_inputs(places).bench_refs(|place| {
        place.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for (number, storage) in place.storages.iter().enumerate() {
                for writer in 0..16u8 {
                    let storage = storage.clone();
                    tasks.spawn(async move { commit(&*storage, number as u8, writer, 32).await });
                }
            }
            tasks.join_all().await;
        });
    });
}

/// Commits small records one by one that nobody else writes.
async fn commit(storage: &dyn Storage, number: u8, writer: u8, count: u8) {
    for record in 0..count {
        let mut batch = Batch::new();
        let key = Key::new(vec![number, writer, record]).expect("3 bytes");
        batch.put(Space::new("records"), key, vec![record; 200]);
        storage.commit(batch, Durability::Durable).await.expect("it commits");
    }
}

#[divan::bench(args = [64, 256, 1024], sample_count = 3, sample_size = 1)]
fn ingest_128_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 128 << 20;
    bencher.counter(BytesCount::new(BYTES)).with_inputs(|| place(Role::Content)).bench_refs(|place| {
        place.runtime.block_on(load::ingest(&place.storages[0], BYTES, kib << 10)).expect("it is written");
    });
}

#[divan::bench(sample_count = 20)]
fn get_1000_records(bencher: Bencher<'_, '_>) {
    let place = place(Role::Records);
    place.runtime.block_on(load::durable_commits(&place.storages[0], 16, 64)).expect("it commits");
    bencher.counter(ItemsCount::new(1000u32)).bench_local(|| {
        place.runtime.block_on(load::read_one_by_one(&place.storages[0], false, 1000)).expect("it is read")
    });
}

#[divan::bench(sample_count = 20)]
fn scan_1000_records(bencher: Bencher<'_, '_>) {
    let place = place(Role::Records);
    place.runtime.block_on(load::durable_commits(&place.storages[0], 16, 64)).expect("it commits");
    bencher
        .counter(ItemsCount::new(1024u32))
        .bench_local(|| place.runtime.block_on(load::scan_records(&place.storages[0])).expect("it is read"));
}

#[divan::bench(args = [64, 256, 1024], sample_count = 5)]
fn read_64_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 64 << 20;
    let place = place(Role::Content);
    place.runtime.block_on(load::ingest(&place.storages[0], BYTES, kib << 10)).expect("it is written");
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
        let count = (BYTES / (kib << 10)) as u64;
        place.runtime.block_on(load::read_one_by_one(&place.storages[0], true, count)).expect("it is read")
    });
}
