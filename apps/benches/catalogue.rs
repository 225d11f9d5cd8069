//! Benchmarks of the catalogue of a tracker on SQLite.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use enjambre_core::storage::location;
use enjambre_core::{FileId, FileKind, Offer, PeerId, Publication, Role, Tenancy, UnixMillis};
use enjambre_storage_sqlite::{SqliteSettings, open};
use enjambre_swarm::catalogue::Catalogue;
use enjambre_swarm::catalogue::peers::Session;
use enjambre_swarm::tracker::settings::TrackerSettings;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const NOW: UnixMillis = UnixMillis(1_000_000_000);
/// Number of offers per announcement.
const OFFERS: u8 = 200;
/// Number of peers that announce concurrently.
const PEERS: u8 = 64;

fn main() {
    divan::main();
}

struct Fixture {
    runtime: Runtime,
    catalogue: Arc<Catalogue>,
    peers: Vec<Session>,
    _folder: TempDir,
}

fn file(n: u8) -> FileId {
    FileId::from_bytes([n; 32])
}

async fn sessions(catalogue: &Catalogue) -> Vec<Session> {
    let mut peers = Vec::new();
    for n in 0..PEERS {
        let id = catalogue
            .open_session(PeerId::from_bytes([n; 32]), Vec::new(), NOW)
            .await
            .expect("the session opens");
        peers.push(catalogue.authorize(id, NOW).await.expect("the session is valid"));
    }
    peers
}

fn fixture() -> Fixture {
    let runtime = Runtime::new().expect("the runtime starts");
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let (catalogue, peers) = runtime.block_on(async {
        let storage = open(
            &SqliteSettings::default(),
            &location::Place::new(folder.path(), Tenancy::Shared),
            Role::Records,
        )
        .await
        .expect("the storage opens");
        // Without a cache, every lookup reads the database.
        let rules = TrackerSettings { lookup_cache: 0, ..TrackerSettings::default() }.rules();
        let catalogue = Catalogue::open(storage, rules, NOW).await.expect("the storage opens");
        let peers = sessions(&catalogue).await;
        for n in 0..OFFERS {
            let name = format!("file-{n}").parse().expect("the name is valid");
            let publication = Publication { name, id: file(n), size: 3 << 20, kind: FileKind::File };
            catalogue.publish(&peers[0], &publication, NOW).await.expect("the file is published");
        }
        (Arc::new(catalogue), peers)
    });
    Fixture { runtime, catalogue, peers, _folder: folder }
}

async fn announce(catalogue: &Catalogue, peers: &[Session]) {
    let offers: Vec<_> = (0..OFFERS).map(|n| Offer { id: file(n), size: 3 << 20, complete: true }).collect();
    let all = peers.iter().map(|peer| catalogue.announce(peer, &offers, NOW));
    for outcome in futures::future::join_all(all).await {
        outcome.expect("the announcement succeeds");
    }
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn announce_new_entries(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(usize::from(OFFERS) * usize::from(PEERS)))
        .with_inputs(fixture)
        .bench_refs(|fixture| fixture.runtime.block_on(announce(&fixture.catalogue, &fixture.peers)));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn announce_known_entries(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(usize::from(OFFERS) * usize::from(PEERS)))
        .with_inputs(|| {
            let mut fixture = fixture();
            fixture.runtime.block_on(announce(&fixture.catalogue, &fixture.peers));
            fixture.peers = fixture.runtime.block_on(sessions(&fixture.catalogue));
            fixture
        })
        .bench_refs(|fixture| fixture.runtime.block_on(announce(&fixture.catalogue, &fixture.peers)));
}

#[divan::bench]
fn find_in_the_database(bencher: Bencher<'_, '_>) {
    let fixture = fixture();
    bencher.bench_local(|| {
        fixture.runtime.block_on(fixture.catalogue.find("file-7", NOW)).expect("the file is found")
    });
}
