//! What runs for every piece or message: codec, piece hashing, schedule decisions.
//!
//! `cargo bench -p enjambre-core --bench hot_paths`

use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use enjambre_core::download::schedule::{ProviderKey, Schedule};
use enjambre_core::download::window::WindowSettings;
use enjambre_core::model::bitmap::Bitmap;
use enjambre_core::model::id::FileId;
use enjambre_core::model::layout::PieceLayout;
use enjambre_core::model::manifest::{Manifest, hash_piece};
use enjambre_core::model::record::Offer;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::message::{Reply, Request, SessionId};
use enjambre_core::transport::envelope::RequestId;

fn main() {
    divan::main();
}

#[divan::bench]
fn encode_piece_request(bencher: Bencher<'_, '_>) {
    let request = Request::Piece { id: FileId::from_bytes([7; 32]), index: 12_345, sparing: false };
    bencher.bench(|| codec::encode_request(RequestId(77), divan::black_box(&request)));
}

#[divan::bench]
fn decode_piece_request(bencher: Bencher<'_, '_>) {
    let request = Request::Piece { id: FileId::from_bytes([7; 32]), index: 12_345, sparing: false };
    let header = codec::encode_request(RequestId(77), &request);
    bencher.bench(|| codec::decode_request(divan::black_box(&header)));
}

#[divan::bench]
fn decode_piece_reply(bencher: Bencher<'_, '_>) {
    let header = codec::encode_reply(Some(RequestId(77)), Ok(&Reply::Piece));
    bencher.bench(|| codec::decode_reply(divan::black_box(&header)));
}

/// What a peer with many files sends when it comes back, as large as one message may be.
#[divan::bench]
fn encode_an_announcement_of_800_files(bencher: Bencher<'_, '_>) {
    let request = announcement();
    bencher
        .counter(ItemsCount::new(800u32))
        .bench(|| codec::encode_request(RequestId(77), divan::black_box(&request)));
}

#[divan::bench]
fn decode_an_announcement_of_800_files(bencher: Bencher<'_, '_>) {
    let header = codec::encode_request(RequestId(77), &announcement());
    assert!(codec::decode_request(&header).is_ok(), "it is within the limits");
    bencher.counter(ItemsCount::new(800u32)).bench(|| codec::decode_request(divan::black_box(&header)));
}

fn announcement() -> Request {
    let offer = |number: u8| Offer { id: FileId::from_bytes([number; 32]), size: 3 << 20, complete: true };
    Request::Announce {
        session: SessionId([7; 16]),
        offers: (0..800u32).map(|number| offer(number as u8)).collect(),
    }
}

#[divan::bench]
fn hash_a_piece(bencher: Bencher<'_, '_>) {
    let layout = PieceLayout::new(1 << 30).expect("1 GiB is a size");
    let piece = layout.piece(5).expect("1 GiB has 4096 pieces");
    let content = vec![7; layout.len(piece)];
    bencher
        .counter(BytesCount::usize(content.len()))
        .bench(|| hash_piece(layout, piece, divan::black_box(&content)));
}

#[divan::bench]
fn merge_the_hashes_of_1_gib(bencher: Bencher<'_, '_>) {
    let layout = PieceLayout::new(1 << 30).expect("1 GiB is a size");
    bencher
        .with_inputs(|| vec![[7; 32]; layout.count() as usize])
        .bench_values(|hashes| Manifest::from_hashes(layout, hashes));
}

/// Every decision of a download: 10,000 pieces, 100 providers with a half each, one with everything.
#[divan::bench(sample_count = 10)]
fn schedule_10_000_pieces_of_100_providers(bencher: Bencher<'_, '_>) {
    // Up to 32 GiB a file has at most 8,192 pieces; from there on they are of 4 MiB.
    let layout = PieceLayout::new(10_000 * (4 << 20)).expect("39 GiB is a size");
    assert_eq!(layout.count(), 10_000);
    let new = || {
        let mut schedule = Schedule::new(layout, &Bitmap::empty(layout), WindowSettings::default(), 7);
        for provider in 0..100 {
            let mut half = Bitmap::empty(layout);
            layout.pieces().filter(|piece| (piece.get() + provider) % 2 == 0).for_each(|piece| {
                half.insert(piece);
            });
            schedule.set_provider(ProviderKey(provider), &half, Duration::ZERO);
        }
        schedule.set_provider(ProviderKey(100), &Bitmap::full(layout), Duration::ZERO);
        schedule
    };
    bencher.counter(ItemsCount::new(layout.count())).with_inputs(new).bench_values(|mut schedule| {
        let mut now = Duration::ZERO;
        while !schedule.is_complete() {
            now += Duration::from_millis(1);
            for provider in (0..=100).map(ProviderKey) {
                if let Some(question) = schedule.next(provider, now) {
                    schedule.arrived(provider, question.piece, now);
                }
            }
        }
    });
}
