//! Operations per piece: hashing and scheduling.
//!
//! `cargo bench -p enjambre-swarm --bench hot_paths`

use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use enjambre_core::model::manifest::hash_piece;
use enjambre_core::{Bitmap, Manifest, PieceLayout};
use enjambre_swarm::download::schedule::{ProviderKey, Schedule};

fn main() {
    divan::main();
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
        let mut schedule = Schedule::new(layout, &Bitmap::empty(layout), 7);
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
