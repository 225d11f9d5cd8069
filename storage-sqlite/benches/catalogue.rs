//! How fast a tracker's catalogue is on this storage.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use enjambre_core::catalogue::Catalogue;
use enjambre_core::catalogue::peers::Session;
use enjambre_core::model::id::{FileId, PeerId};
use enjambre_core::model::record::{FileKind, Offer, Publication};
use enjambre_core::storage::Role;
use enjambre_core::tracker::settings::TrackerSettings;
use enjambre_storage_sqlite::{SqliteSettings, open};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const NOW: u64 = 1_000_000_000;
/// The offers of one announcement.
const OFFERS: u8 = 200;
/// Peers that announce at the same time.
const PEERS: u8 = 64;

fn main() {
    divan::main();
}

struct Place {
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
        let id = catalogue.hello(PeerId::from_bytes([n; 32]), Vec::new(), NOW).await.expect("it is greeted");
        peers.push(catalogue.authorize(id, NOW).await.expect("the session is valid"));
    }
    peers
}

fn place() -> Place {
    let runtime = Runtime::new().expect("a runtime");
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let (catalogue, peers) = runtime.block_on(async {
        let storage = open(&SqliteSettings::default(), folder.path(), Role::Records).await.expect("it opens");
        // Every look-up asks the database.
        let rules = TrackerSettings { cache: 0, ..TrackerSettings::default() }.rules();
        let catalogue = Catalogue::open(storage, rules, NOW).await.expect("it opens");
        let peers = sessions(&catalogue).await;
        for n in 0..OFFERS {
            let name = format!("file-{n}").parse().expect("a name");
            let publication = Publication { name, id: file(n), size: 3 << 20, kind: FileKind::File };
            catalogue.publish(&peers[0], &publication, NOW).await.expect("it is published");
        }
        (Arc::new(catalogue), peers)
    });
    Place { runtime, catalogue, peers, _folder: folder }
}

async fn announce(catalogue: &Catalogue, peers: &[Session]) {
    let offers: Vec<_> = (0..OFFERS).map(|n| Offer { id: file(n), size: 3 << 20, complete: true }).collect();
    let all = peers.iter().map(|peer| catalogue.announce(peer, &offers, NOW));
    for outcome in futures::future::join_all(all).await {
        outcome.expect("it is announced");
    }
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn announce_new_entries(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(usize::from(OFFERS) * usize::from(PEERS)))
        .with_inputs(place)
        .bench_refs(|place| place.runtime.block_on(announce(&place.catalogue, &place.peers)));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn announce_known_entries(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(usize::from(OFFERS) * usize::from(PEERS)))
        .with_inputs(|| {
            let mut place = place();
            place.runtime.block_on(announce(&place.catalogue, &place.peers));
            place.peers = place.runtime.block_on(sessions(&place.catalogue));
            place
        })
        .bench_refs(|place| place.runtime.block_on(announce(&place.catalogue, &place.peers)));
}

#[divan::bench]
fn find_in_the_database(bencher: Bencher<'_, '_>) {
    let place = place();
    bencher.bench_local(|| place.runtime.block_on(place.catalogue.find("file-7", NOW)).expect("it is found"));
}
