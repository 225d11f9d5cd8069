//! How fast the storage is under the loads of a tracker and of a peer.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use enjambre_core::storage::conformance::load;
use enjambre_core::storage::{Role, Storage};
use enjambre_storage_sqlite::{SqliteSettings, open};
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

struct Place {
    runtime: Runtime,
    storage: Arc<dyn Storage>,
    _folder: TempDir,
}

fn place(role: Role) -> Place {
    let runtime = Runtime::new().expect("a runtime");
    // In the build's folder: the temporary one of the system may be in memory, where nothing is ever durable.
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let storage =
        runtime.block_on(open(&SqliteSettings::default(), folder.path(), role)).expect("the storage opens");
    Place { runtime, storage, _folder: folder }
}

#[divan::bench(args = [1, 16], sample_count = 5, sample_size = 1)]
fn durable_commits(bencher: Bencher<'_, '_>, writers: u64) {
    let each = 512 / writers;
    bencher.counter(ItemsCount::new(512u32)).with_inputs(|| place(Role::Records)).bench_refs(|place| {
        place.runtime.block_on(load::durable_commits(&place.storage, writers, each)).expect("it commits");
    });
}

#[divan::bench(args = [64, 256, 1024], sample_count = 5, sample_size = 1)]
fn ingest_128_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 128 << 20;
    bencher.counter(BytesCount::new(BYTES)).with_inputs(|| place(Role::Content)).bench_refs(|place| {
        place.runtime.block_on(load::ingest(&place.storage, BYTES, kib << 10)).expect("it is written");
    });
}

#[divan::bench(sample_count = 20)]
fn get_1000_records(bencher: Bencher<'_, '_>) {
    let place = place(Role::Records);
    place.runtime.block_on(load::durable_commits(&place.storage, 1, 1000)).expect("it commits");
    bencher.counter(ItemsCount::new(1000u32)).bench_local(|| {
        place.runtime.block_on(load::read_one_by_one(&place.storage, false, 1000)).expect("it is read")
    });
}

#[divan::bench(sample_count = 20)]
fn scan_1000_records(bencher: Bencher<'_, '_>) {
    let place = place(Role::Records);
    place.runtime.block_on(load::durable_commits(&place.storage, 1, 1000)).expect("it commits");
    bencher
        .counter(ItemsCount::new(1000u32))
        .bench_local(|| place.runtime.block_on(load::scan_records(&place.storage)).expect("it is read"));
}

#[divan::bench(args = [64, 256, 1024], sample_count = 5)]
fn read_64_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 64 << 20;
    let place = place(Role::Content);
    place.runtime.block_on(load::ingest(&place.storage, BYTES, kib << 10)).expect("it is written");
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
        let count = (BYTES / (kib << 10)) as u64;
        place.runtime.block_on(load::read_one_by_one(&place.storage, true, count)).expect("it is read")
    });
}

#[divan::bench(sample_count = 5)]
fn read_64_mib_by_two_while_it_is_written_over(bencher: Bencher<'_, '_>) {
    const BYTES: usize = 64 << 20;
    let place = place(Role::Content);
    place.runtime.block_on(load::ingest(&place.storage, BYTES, 1 << 20)).expect("it is written");
    bencher.counter(BytesCount::new(2 * BYTES)).bench_local(|| {
        place.runtime.block_on(async {
            let writer = place.storage.clone();
            let writer = tokio::spawn(async move {
                loop {
                    load::ingest(&writer, BYTES, 1 << 20).await.expect("it is written");
                }
            });
            let read = || load::read_one_by_one(&place.storage, true, 64);
            let (one, other) = tokio::join!(read(), read());
            one.and(other).expect("it is read");
            writer.abort();
        });
    });
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn remove_128_mib(bencher: Bencher<'_, '_>) {
    const BYTES: usize = 128 << 20;
    let filled = || {
        let place = place(Role::Content);
        place.runtime.block_on(load::ingest(&place.storage, BYTES, 1 << 20)).expect("it is written");
        place
    };
    bencher.counter(BytesCount::new(BYTES)).with_inputs(filled).bench_refs(|place| {
        place.runtime.block_on(load::remove(&place.storage, 128)).expect("it is removed");
    });
}
