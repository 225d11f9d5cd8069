//! What a tracker does for every announcement and look-up: codec, catalogue over the storage in memory.
//!
//! `cargo bench -p enjambre-core --bench tracker`

use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use enjambre_core::catalogue::Catalogue;
use enjambre_core::catalogue::peers::Session;
use enjambre_core::model::id::{FileId, PeerId};
use enjambre_core::model::record::{FileKind, Offer, Publication};
use enjambre_core::protocol::codec;
use enjambre_core::protocol::lookup;
use enjambre_core::protocol::message::{Request, SessionId};
use enjambre_core::storage::memory::Memory;
use enjambre_core::tracker::settings::TrackerSettings;
use enjambre_core::transport::envelope::RequestId;
use tokio::runtime::{Builder, Runtime};

const NOW: u64 = 1_000_000_000;
/// The offers of one announcement.
const OFFERS: u64 = 800;

fn main() {
    divan::main();
}

fn file(n: u64) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

fn offers() -> Vec<Offer> {
    (0..OFFERS).map(|n| Offer { id: file(n), size: 3 << 20, complete: true }).collect()
}

struct Place {
    runtime: Runtime,
    catalogue: Catalogue,
}

/// A catalogue with as many files as there are offers in an announcement, and one peer that has them.
fn place(cache: usize) -> Place {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let rules = TrackerSettings { cache, ..TrackerSettings::default() }.rules();
    let catalogue = runtime.block_on(async {
        let catalogue = Catalogue::open(Arc::new(Memory::new()), rules, NOW).await.expect("it opens");
        let publisher = session(&catalogue, 0).await;
        for n in 0..OFFERS {
            let name = format!("file-{n}").parse().expect("a name");
            let publication = Publication { name, id: file(n), size: 3 << 20, kind: FileKind::File };
            catalogue.publish(&publisher, &publication, NOW).await.expect("it is published");
        }
        catalogue
    });
    Place { runtime, catalogue }
}

async fn session(catalogue: &Catalogue, n: u64) -> Session {
    let peer = PeerId::from_bytes(*file(n).as_bytes());
    let endpoint = "zmq://10.0.0.1:7710".parse().expect("an endpoint");
    let id = catalogue.hello(peer, vec![endpoint], NOW).await.expect("it is greeted");
    catalogue.authorize(id, NOW).await.expect("the session is valid")
}

/// Each time by a peer that had announced nothing before.
#[divan::bench]
fn announce_800_new_entries(bencher: Bencher<'_, '_>) {
    let (place, offers) = (place(32 << 20), offers());
    let mut peer = 0;
    bencher
        .counter(ItemsCount::new(OFFERS))
        .with_inputs(|| {
            peer += 1;
            place.runtime.block_on(session(&place.catalogue, peer))
        })
        .bench_local_values(|by| {
            place.runtime.block_on(place.catalogue.announce(&by, &offers, NOW)).expect("it is announced")
        });
}

/// Each time in a new session of the same peer.
#[divan::bench]
fn announce_800_known_entries(bencher: Bencher<'_, '_>) {
    let (place, offers) = (place(32 << 20), offers());
    bencher
        .counter(ItemsCount::new(OFFERS))
        .with_inputs(|| place.runtime.block_on(session(&place.catalogue, 1)))
        .bench_local_values(|by| {
            place.runtime.block_on(place.catalogue.announce(&by, &offers, NOW)).expect("it is announced")
        });
}

/// With what was looked up remembered, and without.
#[divan::bench(args = [32 << 20, 0])]
fn find_by_name(bencher: Bencher<'_, '_>, cache: usize) {
    let place = place(cache);
    bencher.bench_local(|| place.runtime.block_on(place.catalogue.find("file-7", NOW)).expect("it is found"));
}

#[divan::bench]
fn find_remembered(bencher: Bencher<'_, '_>) {
    let place = place(32 << 20);
    place.runtime.block_on(place.catalogue.find("file-7", NOW)).expect("it is found");
    let header = codec::encode_request(RequestId(7), &Request::Find { query: "file-7".to_owned() });
    bencher.bench_local(|| match lookup::read(divan::black_box(&header)) {
        Some((id, lookup::Lookup::Find { query })) => {
            let answers = place.catalogue.find_remembered(query, NOW).expect("it is remembered");
            lookup::reply(id, &answers.found)
        }
        other => panic!("{other:?}"),
    });
}

#[divan::bench]
fn providers_remembered(bencher: Bencher<'_, '_>) {
    let place = place(32 << 20);
    let id = file(7);
    place.runtime.block_on(place.catalogue.providers_for(&id, true, NOW)).expect("it is found");
    bencher.bench_local(|| {
        let providers = place.catalogue.providers_remembered(&id, true, NOW).expect("it is remembered");
        providers.finish(RequestId(7))
    });
}

#[divan::bench]
fn decode_an_announcement_of_800(bencher: Bencher<'_, '_>) {
    let request = Request::Announce { session: SessionId([1; 16]), offers: offers() };
    let header = codec::encode_request(RequestId(7), &request);
    bencher
        .counter(ItemsCount::new(OFFERS))
        .bench(|| codec::decode_request(divan::black_box(&header)).expect("it is a request"));
}

#[divan::bench]
fn decode_a_find_as_any_other_request(bencher: Bencher<'_, '_>) {
    let header = codec::encode_request(RequestId(7), &Request::Find { query: "file-7".to_owned() });
    bencher.bench(|| codec::decode_request(divan::black_box(&header)).expect("it is a request"));
}

#[divan::bench]
fn read_a_find_as_a_look_up(bencher: Bencher<'_, '_>) {
    let header = codec::encode_request(RequestId(7), &Request::Find { query: "file-7".to_owned() });
    bencher.bench(|| lookup::read(divan::black_box(&header)).map(|(id, _)| id));
}
