//! Encoding and decoding of the most frequent and the largest messages, with and without the specialized decoders.
//!
//! `cargo bench -p enjambre-core --bench codec`

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use enjambre_core::model::record::Offer;
use enjambre_core::model::session::SessionId;
use enjambre_core::protocol::message::{MAX_OFFERS, Reply, Request};
use enjambre_core::protocol::{codec, lookup};
use enjambre_core::transport::envelope::EncodedRequest;
use enjambre_core::{FileId, RequestId};

const ID: RequestId = RequestId(77);

fn main() {
    divan::main();
}

fn find() -> Request {
    Request::Find { query: "file-7".to_owned() }
}

fn piece() -> Request {
    Request::Piece { id: FileId::from_bytes([7; 32]), index: 12_345, super_seed: false }
}

/// The largest announcement.
fn announce() -> Request {
    let offer =
        |number: usize| Offer { id: FileId::from_bytes([number as u8; 32]), size: 3 << 20, complete: true };
    Request::Announce { session: SessionId([7; 16]), offers: (0..MAX_OFFERS).map(offer).collect() }
}

fn parse(header: &Bytes) -> EncodedRequest {
    EncodedRequest::parse(header.clone()).expect("the header is valid")
}

#[divan::bench(args = ["find", "piece", "announce"])]
fn encode(bencher: Bencher<'_, '_>, kind: &str) {
    let request = request(kind);
    bencher.bench(|| codec::encode_request(ID, divan::black_box(&request)));
}

#[divan::bench(args = ["find", "piece", "announce"])]
fn decode(bencher: Bencher<'_, '_>, kind: &str) {
    let header = codec::encode_request(ID, &request(kind));
    bencher.bench(|| codec::decode_request(&parse(divan::black_box(&header))));
}

/// Without the specialized decoder.
#[divan::bench]
fn decode_announce_with_ciborium(bencher: Bencher<'_, '_>) {
    let header = codec::encode_request(ID, &announce());
    bencher
        .counter(ItemsCount::new(MAX_OFFERS))
        .bench(|| parse(divan::black_box(&header)).decode::<Request>());
}

/// With the specialized decoder of cached lookups.
#[divan::bench]
fn decode_find_as_lookup(bencher: Bencher<'_, '_>) {
    let header = codec::encode_request(ID, &find());
    bencher.bench(|| lookup::decode(&parse(divan::black_box(&header))).is_some());
}

#[divan::bench]
fn decode_piece_reply(bencher: Bencher<'_, '_>) {
    let header = codec::encode_reply(Some(ID), Ok(&Reply::Piece));
    bencher.bench(|| codec::decode_reply(divan::black_box(&header)));
}

fn request(kind: &str) -> Request {
    match kind {
        "find" => find(),
        "piece" => piece(),
        _ => announce(),
    }
}
