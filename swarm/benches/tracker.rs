//! Announcements and lookups at a tracker: cache, and catalogue on the in-memory storage.
//!
//! `cargo bench -p enjambre-swarm --bench tracker`

use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::lookup;
use enjambre_core::protocol::message::Request;
use enjambre_core::{
    EncodedRequest, FileId, FileKind, FileRecord, Memory, Offer, PeerId, Publication, RequestId, UnixMillis,
};
use enjambre_swarm::catalogue::Catalogue;
use enjambre_swarm::catalogue::peers::Session;
use enjambre_swarm::tracker::lookups::Lookups;
use enjambre_swarm::tracker::settings::TrackerSettings;
use tokio::runtime::{Builder, Runtime};

const NOW: UnixMillis = UnixMillis(1_000_000_000);
/// The offers of one announcement.
const OFFERS: u64 = 800;
const CACHE: usize = 32 << 20;

fn file(n: u64) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

fn offers() -> Vec<Offer> {
    (0..OFFERS).map(|n| Offer { id: file(n), size: 3 << 20, complete: true }).collect()
}

struct Fixture {
    runtime: Runtime,
    catalogue: Arc<Catalogue>,
    lookups: Lookups,
}

/// A catalogue with as many files as there are offers in an announcement, and one peer that has them.
fn fixture(lookup_cache: usize) -> Fixture {
    let runtime = Builder::new_current_thread().enable_time().build().expect("the runtime starts");
    let settings = TrackerSettings { lookup_cache, ..TrackerSettings::default() };
    let catalogue = runtime.block_on(async {
        let storage = Arc::new(Memory::new());
        let catalogue = Catalogue::open(storage, settings.rules(), NOW).await.expect("the catalogue opens");
        let publisher = session(&catalogue, 0).await;
        for n in 0..OFFERS {
            let name = format!("file-{n}").parse().expect("the name is valid");
            let publication = Publication { name, id: file(n), size: 3 << 20, kind: FileKind::File };
            catalogue.publish(&publisher, &publication, NOW).await.expect("the file is published");
        }
        Arc::new(catalogue)
    });
    let lookups = Lookups::new(Arc::clone(&catalogue), settings.lookup_cache_bytes());
    Fixture { runtime, catalogue, lookups }
}

async fn session(catalogue: &Catalogue, n: u64) -> Session {
    let peer = PeerId::from_bytes(*file(n).as_bytes());
    let endpoint = "zmq://10.0.0.1:7710".parse().expect("the endpoint is valid");
    let id = catalogue.open_session(peer, vec![endpoint], NOW).await.expect("the session opens");
    catalogue.authorize(id, NOW).await.expect("the session is valid")
}

fn announce(fixture: &Fixture, by: &Session, offers: &[Offer]) {
    let announced = fixture.runtime.block_on(fixture.catalogue.announce(by, offers, NOW));
    announced.expect("the announcement succeeds");
}

/// Each time by a new peer.
#[divan::bench]
fn announce_800_new_entries(bencher: Bencher<'_, '_>) {
    let (fixture, offers) = (fixture(CACHE), offers());
    let mut peer = 0;
    bencher
        .counter(ItemsCount::new(OFFERS))
        .with_inputs(|| {
            peer += 1;
            fixture.runtime.block_on(session(&fixture.catalogue, peer))
        })
        .bench_local_values(|by| announce(&fixture, &by, &offers));
}

/// Each time in a new session of the same peer.
#[divan::bench]
fn announce_800_known_entries(bencher: Bencher<'_, '_>) {
    let (fixture, offers) = (fixture(CACHE), offers());
    bencher
        .counter(ItemsCount::new(OFFERS))
        .with_inputs(|| fixture.runtime.block_on(session(&fixture.catalogue, 1)))
        .bench_local_values(|by| announce(&fixture, &by, &offers));
}

fn find(fixture: &Fixture) -> FileRecord {
    fixture.runtime.block_on(fixture.lookups.find("file-7", None, NOW)).expect("the file is found")
}

/// With and without a cache.
#[divan::bench(args = [CACHE, 0])]
fn find_by_name(bencher: Bencher<'_, '_>, cache: usize) {
    let fixture = fixture(cache);
    bencher.bench_local(|| find(&fixture));
}

#[divan::bench]
fn find_cached(bencher: Bencher<'_, '_>) {
    let fixture = fixture(CACHE);
    find(&fixture);
    let header = find_header();
    // Each request arrives in its own memory.
    bencher.with_inputs(|| Bytes::copy_from_slice(&header)).bench_local_values(|header| {
        let request = EncodedRequest::parse(header).expect("the header is valid");
        match lookup::decode(&request) {
            Some(lookup::Lookup::Find { query }) => {
                let answers = fixture.lookups.cached_find(query, NOW).expect("it is cached");
                lookup::reply(request.id(), &answers.to(true).found)
            }
            other => panic!("{other:?}"),
        }
    });
}

#[divan::bench(args = [1, 100])]
fn providers_cached(bencher: Bencher<'_, '_>, peers: u64) {
    let (fixture, id) = (fixture(CACHE), file(7));
    for n in 1..peers {
        let by = fixture.runtime.block_on(session(&fixture.catalogue, n));
        announce(&fixture, &by, &[Offer { id, size: 3 << 20, complete: true }]);
    }
    fixture.runtime.block_on(fixture.lookups.providers(&id, true, NOW)).expect("the file is found");
    bencher.bench_local(|| {
        let providers = fixture.lookups.cached_providers(&id, true, NOW).expect("it is cached");
        providers.finish(RequestId(7))
    });
}

fn find_header() -> Bytes {
    codec::encode_request(RequestId(7), &Request::Find { query: "file-7".to_owned() })
}

fn main() {
    divan::main();
}
