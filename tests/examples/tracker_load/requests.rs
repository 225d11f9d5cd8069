//! Encoding of requests without the overhead of the regular encoder.

use bytes::{BufMut, Bytes, BytesMut};
use enjambre_core::model::id::FileId;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::message::Request;
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::{Offer, SessionId};

/// Returns the name under which a file is published.
pub(crate) fn name_of(id: &FileId) -> String {
    format!("file-{id}.bin")
}

/// Encodes the list of offers of an announcement, for use by many peers.
pub(crate) fn encoded_offers(offers: &[Offer]) -> Bytes {
    let request = Request::Announce { session: SessionId([0; 16]), offers: offers.to_vec() };
    let whole = codec::encode_request(RequestId(0), &request);
    let key = b"foffers";
    let at = whole.windows(key.len()).position(|window| window == key).expect("the request contains offers");
    whole.slice(at + key.len()..)
}

/// Encodes `{"v": 1, "id": ..`.
pub(crate) fn put_id(header: &mut BytesMut, id: RequestId) {
    header.put_slice(b"\xa3\x61v\x01\x62id\x1b");
    header.put_u64(id.0);
}

/// Encodes `"request": {kind: {` for this number of fields.
fn put_kind(header: &mut BytesMut, kind: &str, fields: u8) {
    header.put_slice(b"\x67request\xa1");
    put_text(header, kind);
    header.put_u8(0xa0 | fields);
}

fn put_text(header: &mut BytesMut, text: &str) {
    match text.len() {
        length @ 0..24 => header.put_u8(0x60 | length as u8),
        length => header.put_slice(&[0x78, length as u8]),
    }
    header.put_slice(text.as_bytes());
}

pub(crate) fn announce_header(id: RequestId, session: SessionId, offers: &Bytes) -> Bytes {
    let mut header = BytesMut::with_capacity(offers.len() + 80);
    put_id(&mut header, id);
    put_kind(&mut header, "announce", 2);
    put_text(&mut header, "session");
    header.put_u8(0x50);
    header.put_slice(&session.0);
    put_text(&mut header, "offers");
    header.put_slice(offers);
    header.freeze()
}

/// The kind of a lookup.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Find,
    Providers,
}

/// The encoded lookups of a file.
#[derive(Debug)]
pub(crate) struct FileRequests {
    by_name: Bytes,
    by_id: Bytes,
    providers: Bytes,
}

impl FileRequests {
    pub(crate) fn new(id: &FileId) -> Self {
        let find = |query: &str| {
            let mut encoded = BytesMut::new();
            put_kind(&mut encoded, "find", 1);
            put_text(&mut encoded, "query");
            put_text(&mut encoded, query);
            encoded.freeze()
        };
        let mut providers = BytesMut::new();
        put_kind(&mut providers, "providers", 1);
        put_text(&mut providers, "id");
        providers.put_slice(&[0x58, 32]);
        providers.put_slice(id.as_bytes());
        Self { by_name: find(&name_of(id)), by_id: find(&id.to_string()), providers: providers.freeze() }
    }

    /// Returns the encoded lookup number `count` of this kind; `find` alternates between name and id.
    pub(crate) fn get(&self, kind: Kind, count: u64) -> &Bytes {
        match kind {
            Kind::Find if count.is_multiple_of(2) => &self.by_name,
            Kind::Find => &self.by_id,
            Kind::Providers => &self.providers,
        }
    }
}
