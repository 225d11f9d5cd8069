//! Decoder and encoder for lookups, without a serializer.
//!
//! Lookups are the most frequent requests to a tracker. Their usual encoding is decoded here, in 13 % of the time of ciborium
//! and without an allocation (bench `codec`). Their replies are assembled from parts that were encoded before. Any other
//! encoding (another order of the fields, unknown fields, other lengths of numbers) is left to [`super::codec`]. Tests compare
//! both decoders.

use bytes::Bytes;

use super::message::MAX_PROVIDERS;
use crate::model::cbor::{ARRAY, BYTES, TEXT, UINT, put_head, take_head};
use crate::model::endpoint::Endpoint;
use crate::model::id::{FileId, PeerId};
use crate::transport::envelope::{self, EncodedRequest, RequestId};

/// Maximum size in bytes of the providers in a reply, so that the header stays within its limit.
pub const MAX_PROVIDER_BYTES: usize = 48 * 1024;
/// Maximum size in bytes of the claim of a provider in a reply.
pub const CLAIM_BYTES: usize = 24;

/// A lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// [`Request::Find`](super::message::Request::Find)
    Find {
        /// The name, id or id prefix.
        query: &'a str,
    },
    /// [`Request::Providers`](super::message::Request::Providers)
    Providers {
        /// The file.
        id: FileId,
    },
}

/// Decodes a lookup. Returns `None` if the request has another kind or encoding.
pub fn decode(request: &EncodedRequest) -> Option<Lookup<'_>> {
    match request.kind() {
        "find" => {
            let mut query = request.fields()?.strip_prefix(b"\xa1\x65query")?;
            let length = usize::try_from(take_head(&mut query, TEXT)?).ok()?;
            let query = std::str::from_utf8(query).ok().filter(|query| query.len() == length)?;
            Some(Lookup::Find { query })
        }
        "providers" => {
            let id = request.fields()?.strip_prefix(b"\xa1\x62id\x58\x20")?;
            Some(Lookup::Providers { id: FileId::try_from(id).ok()? })
        }
        _ => None,
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_head(bytes, TEXT, text.len() as u64);
    bytes.extend(text.as_bytes());
}

/// Returns the header of a reply that was encoded by [`super::codec::encode_body`].
pub fn reply(id: RequestId, body: &[u8]) -> Bytes {
    let mut header = envelope::begin_reply(id, body.len());
    header.extend(body);
    header.into()
}

/// The encoded id and endpoints of a provider: one version for requesters on this host, and one without loopback endpoints
/// for all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPeer {
    local: Bytes,
    remote: Bytes,
}

impl EncodedPeer {
    /// Encodes the id and endpoints of a peer.
    pub fn new(peer: &PeerId, endpoints: &[Endpoint]) -> Self {
        let all: Vec<&Endpoint> = endpoints.iter().collect();
        let reachable: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| !endpoint.is_loopback()).collect();
        let local = encode_peer(peer, &all);
        let remote = if reachable.len() == all.len() { local.clone() } else { encode_peer(peer, &reachable) };
        Self { local, remote }
    }

    /// Returns the version for a requester, or `None` if it can reach no endpoint.
    pub fn visible_to(&self, is_local: bool) -> Option<&[u8]> {
        let peer = if is_local { &self.local } else { &self.remote };
        (!peer.is_empty()).then_some(peer)
    }
}

/// Returns no bytes if there are no endpoints.
fn encode_peer(peer: &PeerId, endpoints: &[&Endpoint]) -> Bytes {
    if endpoints.is_empty() {
        return Bytes::new();
    }
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(b"\xa4\x64peer");
    put_head(&mut bytes, BYTES, 32);
    bytes.extend(peer.as_bytes());
    put_text(&mut bytes, "endpoints");
    put_head(&mut bytes, ARRAY, endpoints.len() as u64);
    for endpoint in endpoints {
        put_text(&mut bytes, &endpoint.to_string());
    }
    Bytes::copy_from_slice(&bytes)
}

/// An incomplete reply to `providers`.
#[derive(Debug, Default)]
pub struct ProvidersReply {
    items: Vec<u8>,
    count: usize,
}

impl ProvidersReply {
    /// Adds a provider, encoded by [`EncodedPeer::visible_to`]. Returns false if the reply is full.
    pub fn push(&mut self, peer: &[u8], size: u64, complete: bool) -> bool {
        if self.count == MAX_PROVIDERS || self.items.len() + peer.len() + CLAIM_BYTES > MAX_PROVIDER_BYTES {
            return false;
        }
        self.items.extend(peer);
        put_text(&mut self.items, "size");
        put_head(&mut self.items, UINT, size);
        put_text(&mut self.items, "complete");
        self.items.push(if complete { 0xf5 } else { 0xf4 });
        self.count += 1;
        true
    }

    /// Returns the header of the reply.
    pub fn finish(self, id: RequestId) -> Bytes {
        let mut header = envelope::begin_reply(id, self.items.len() + 32);
        header.extend(b"\xa1\x69providers\xa1\x69providers");
        put_head(&mut header, ARRAY, self.count as u64);
        header.extend(self.items);
        header.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::Provider;
    use crate::protocol::codec;
    use crate::protocol::message::{Reply, Request};
    use proptest::prelude::*;

    fn parse(header: impl Into<Bytes>) -> Option<EncodedRequest> {
        EncodedRequest::parse(header.into()).ok()
    }

    fn encode(request: &Request) -> EncodedRequest {
        parse(codec::encode_request(RequestId(77), request)).unwrap()
    }

    proptest! {
        #[test]
        fn encoded_lookup_is_decoded(query in ".{0,40}", file in any::<[u8; 32]>()) {
            let file = FileId::from_bytes(file);
            let find = encode(&Request::Find { query: query.clone() });
            prop_assert_eq!(decode(&find), Some(Lookup::Find { query: &query }));
            let providers = encode(&Request::Providers { id: file });
            prop_assert_eq!(decode(&providers), Some(Lookup::Providers { id: file }));
        }

        #[test]
        fn changed_lookup_is_decoded_like_by_ciborium(
            at in 0usize..200, to in any::<u8>(), cut in 0usize..200, query in "[a-z]{0,30}", find in any::<bool>(),
        ) {
            let providers = Request::Providers { id: FileId::from_bytes([7; 32]) };
            let request = if find { Request::Find { query } } else { providers };
            let mut header = codec::encode_request(RequestId(77), &request).to_vec();
            let length = header.len();
            header[at % length] = to;
            header.truncate(cut.max(length / 2));
            let request = parse(header);
            let expected = match request.as_ref().and_then(decode) {
                Some(Lookup::Find { query }) => Request::Find { query: query.to_owned() },
                Some(Lookup::Providers { id }) => Request::Providers { id },
                None => return Ok(()),
            };
            prop_assert_eq!(codec::decode_request(&request.unwrap()), Ok(expected));
        }
    }

    #[test]
    fn other_kinds_are_left_to_the_codec() {
        for request in
            [Request::Status, Request::Piece { id: FileId::from_bytes([1; 32]), index: 5, super_seed: false }]
        {
            assert_eq!(decode(&encode(&request)), None);
        }
    }

    fn provider(n: u16, endpoints: usize) -> Provider {
        let mut peer = [7; 32];
        peer[..2].copy_from_slice(&n.to_be_bytes());
        let endpoint = |at| format!("zmq://host-{}.example.org:{at}", "x".repeat(20)).parse().unwrap();
        Provider {
            peer: PeerId::from_bytes(peer),
            endpoints: (1..=endpoints).map(endpoint).collect(),
            size: 1 << (n % 50),
            complete: n.is_multiple_of(2),
        }
    }

    /// Encodes and decodes a reply. Returns the providers in it, and how many fit.
    fn round_trip(all: &[Provider], is_local: bool) -> (Vec<Provider>, usize) {
        let mut reply = ProvidersReply::default();
        let fits = |provider: &&Provider| {
            let encoded = EncodedPeer::new(&provider.peer, &provider.endpoints);
            reply.push(encoded.visible_to(is_local).unwrap(), provider.size, provider.complete)
        };
        let fitted = all.iter().take_while(fits).count();
        let header = reply.finish(RequestId(300));
        assert!(header.len() < 64 * 1024);
        match codec::decode_reply(&header) {
            Some(Ok(Reply::Providers { providers })) => (providers, fitted),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn encoded_providers_are_decoded() {
        let all: Vec<_> = (0..30).map(|n| provider(n, usize::from(n % 3) + 1)).collect();
        assert_eq!(round_trip(&[], true), (Vec::new(), 0));
        for is_local in [true, false] {
            assert_eq!(round_trip(&all, is_local), (all.clone(), 30));
        }
    }

    #[test]
    fn only_local_requesters_see_loopback_endpoints() {
        let [loopback, other] = ["tcp://127.0.0.1:1", "tcp://10.0.0.1:1"].map(|text| text.parse().unwrap());
        let both = Provider { endpoints: vec![loopback, other], ..provider(1, 1) };
        assert_eq!(round_trip(std::slice::from_ref(&both), true).0, std::slice::from_ref(&both));
        assert_eq!(round_trip(std::slice::from_ref(&both), false).0[0].endpoints, both.endpoints[1..]);
        let hidden = EncodedPeer::new(&both.peer, &both.endpoints[..1]);
        assert!(hidden.visible_to(true).is_some() && hidden.visible_to(false).is_none());
        assert_eq!(EncodedPeer::new(&both.peer, &[]).visible_to(true), None);
    }

    #[test]
    fn reply_is_bounded_in_count_and_size() {
        let many: Vec<_> = (0..150).map(|n| provider(n, 1)).collect();
        assert_eq!(round_trip(&many, true), (many[..MAX_PROVIDERS].to_vec(), MAX_PROVIDERS));
        let large: Vec<_> = (0..150).map(|n| Provider { size: u64::MAX, ..provider(n, 40) }).collect();
        let (found, fitted) = round_trip(&large, true);
        assert!((1..MAX_PROVIDERS).contains(&fitted) && found == large[..fitted], "{fitted}");
    }

    #[test]
    fn assembled_reply_equals_that_of_the_codec() {
        for id in [0, 23, 24, 255, 256, 65_536, 1 << 32, u64::MAX] {
            let id = RequestId(id);
            let expected = codec::encode_reply(Some(id), Ok(&Reply::Done));
            assert_eq!(reply(id, &codec::encode_body(&Reply::Done)), expected);
        }
    }
}
