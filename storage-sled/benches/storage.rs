//! The throughput of the storage under the load of a tracker and of a peer.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use enjambre_core::{Place, Role, Storage, Tenancy};
use enjambre_storage_sled::{SledSettings, open};
use enjambre_testkit::storage::load;
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

struct Fixture {
    runtime: Runtime,
    storage: Arc<dyn Storage>,
    _folder: TempDir,
}

fn fixture(role: Role) -> Fixture {
    let runtime = Runtime::new().expect("a runtime");
    // Not the temporary directory of the system, which may be in memory, where a sync costs nothing.
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let storage = runtime
        .block_on(open(&SledSettings::default(), &Place::new(folder.path(), Tenancy::Single), role))
        .expect("the storage opens");
    Fixture { runtime, storage, _folder: folder }
}

#[divan::bench(args = [1, 16], sample_count = 5, sample_size = 1)]
fn durable_commits(bencher: Bencher<'_, '_>, writers: u64) {
    let each = 512 / writers;
    bencher.counter(ItemsCount::new(512u32)).with_inputs(|| fixture(Role::Records)).bench_refs(|fixture| {
        fixture
            .runtime
            .block_on(load::durable_commits(&fixture.storage, writers, each))
            .expect("the commit succeeds");
    });
}

#[divan::bench(args = [32, 64], sample_count = 5, sample_size = 1)]
fn ingest_128_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 128 << 20;
    bencher.counter(BytesCount::new(BYTES)).with_inputs(|| fixture(Role::Content)).bench_refs(|fixture| {
        fixture
            .runtime
            .block_on(load::ingest(&fixture.storage, BYTES, kib << 10))
            .expect("the write succeeds");
    });
}

#[divan::bench(sample_count = 20)]
fn get_1000_records(bencher: Bencher<'_, '_>) {
    let fixture = fixture(Role::Records);
    fixture.runtime.block_on(load::durable_commits(&fixture.storage, 1, 1000)).expect("the commit succeeds");
    bencher.counter(ItemsCount::new(1000u32)).bench_local(|| {
        fixture
            .runtime
            .block_on(load::read_one_by_one(&fixture.storage, false, 1000))
            .expect("the read succeeds")
    });
}

#[divan::bench(sample_count = 20)]
fn scan_1000_records(bencher: Bencher<'_, '_>) {
    let fixture = fixture(Role::Records);
    fixture.runtime.block_on(load::durable_commits(&fixture.storage, 1, 1000)).expect("the commit succeeds");
    bencher.counter(ItemsCount::new(1000u32)).bench_local(|| {
        fixture.runtime.block_on(load::scan_records(&fixture.storage)).expect("the read succeeds")
    });
}

#[divan::bench(args = [32, 64], sample_count = 5)]
fn read_64_mib_in_values_of_kib(bencher: Bencher<'_, '_>, kib: usize) {
    const BYTES: usize = 64 << 20;
    let fixture = fixture(Role::Content);
    fixture.runtime.block_on(load::ingest(&fixture.storage, BYTES, kib << 10)).expect("the write succeeds");
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
        let count = (BYTES / (kib << 10)) as u64;
        fixture
            .runtime
            .block_on(load::read_one_by_one(&fixture.storage, true, count))
            .expect("the read succeeds")
    });
}
