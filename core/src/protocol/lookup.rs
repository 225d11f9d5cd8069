//! Look-ups without a serializer: the few requests that a tracker is asked most often are read as they usually are
//! written, and their replies are put together from parts that were encoded before.
//!
//! Whatever is written in another way (another order of fields, unknown ones, other lengths of a number) is left to
//! [`super::codec`], which reads every form; a test holds the two together.

use bytes::Bytes;

use super::message::MAX_PROVIDERS;
use crate::cbor::{ARRAY, BYTES, TEXT, UINT, put_head, take_head};
use crate::model::endpoint::Endpoint;
use crate::model::id::{FileId, PeerId};
use crate::transport::envelope::RequestId;

/// How many bytes the providers in one reply take at most, so that it stays below the limit of a header.
pub const MAX_PROVIDER_BYTES: usize = 48 * 1024;
/// The most bytes that the claim of a provider takes in a reply.
pub const CLAIM_BYTES: usize = 24;

/// What is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// [`super::message::Request::Find`]
    Find {
        /// What is sought.
        query: &'a str,
    },
    /// [`super::message::Request::Providers`]
    Providers {
        /// The file.
        id: FileId,
    },
}

/// Reads a look-up; none where the header is something else, or written in another way.
pub fn read(header: &[u8]) -> Option<(RequestId, Lookup<'_>)> {
    let mut rest = header.strip_prefix(b"\xa3\x61v\x01\x62id")?;
    let id = RequestId(take_head(&mut rest, UINT)?);
    rest = rest.strip_prefix(b"\x63ask\xa1")?;
    let lookup = if let Some(mut query) = rest.strip_prefix(b"\x64find\xa1\x65query") {
        let length = usize::try_from(take_head(&mut query, TEXT)?).ok()?;
        Lookup::Find { query: std::str::from_utf8(query).ok().filter(|query| query.len() == length)? }
    } else {
        let id = rest.strip_prefix(b"\x69providers\xa1\x62id\x58\x20")?;
        Lookup::Providers { id: FileId::try_from(id).ok()? }
    };
    Some((id, lookup))
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_head(bytes, TEXT, text.len() as u64);
    bytes.extend(text.as_bytes());
}

fn begin_reply(id: RequestId, room: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(room + 32);
    header.extend(b"\xa3\x61v\x01\x62id");
    put_head(&mut header, UINT, id.0);
    header.extend(b"\x65reply");
    header
}

/// The header of a reply, `reply` being what [`super::codec::encode_body`] made of it.
pub fn reply(id: RequestId, reply: &[u8]) -> Bytes {
    let mut header = begin_reply(id, reply.len());
    header.extend(reply);
    header.into()
}

/// A peer as it stands in a reply to `providers`, but for what it claims: for those who ask from this machine itself, and
/// for all others, who are not told of loopback addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPeer {
    near: Bytes,
    far: Bytes,
}

impl EncodedPeer {
    /// A peer and where it can be reached.
    pub fn new(peer: &PeerId, endpoints: &[Endpoint]) -> Self {
        let all: Vec<&Endpoint> = endpoints.iter().collect();
        let others: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| !endpoint.is_loopback()).collect();
        let near = encode_peer(peer, &all);
        let far = if others.len() == all.len() { near.clone() } else { encode_peer(peer, &others) };
        Self { near, far }
    }

    /// What is told; none where there is no endpoint that could be reached.
    pub fn told(&self, near: bool) -> Option<&[u8]> {
        let told = if near { &self.near } else { &self.far };
        (!told.is_empty()).then_some(told)
    }
}

/// Empty without endpoints.
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

/// A reply to `providers` that is being put together.
#[derive(Debug, Default)]
pub struct ProvidersReply {
    items: Vec<u8>,
    count: usize,
}

impl ProvidersReply {
    /// Adds a provider, `told` being from [`EncodedPeer::told`]; false where there is no more room.
    pub fn push(&mut self, told: &[u8], size: u64, complete: bool) -> bool {
        if self.count == MAX_PROVIDERS || self.items.len() + told.len() + CLAIM_BYTES > MAX_PROVIDER_BYTES {
            return false;
        }
        self.items.extend(told);
        put_text(&mut self.items, "size");
        put_head(&mut self.items, UINT, size);
        put_text(&mut self.items, "complete");
        self.items.push(if complete { 0xf5 } else { 0xf4 });
        self.count += 1;
        true
    }

    /// The header of the reply.
    pub fn finish(self, id: RequestId) -> Bytes {
        let mut header = begin_reply(id, self.items.len());
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

    proptest! {
        #[test]
        fn a_lookup_is_read_as_the_codec_reads_it(
            id in any::<u64>(), query in ".{0,40}", file in any::<[u8; 32]>(), shift in 0u32..64,
        ) {
            let id = RequestId(id >> shift);
            let file = FileId::from_bytes(file);
            let find = codec::encode_request(id, &Request::Find { query: query.clone() });
            prop_assert_eq!(read(&find), Some((id, Lookup::Find { query: &query })));
            let providers = codec::encode_request(id, &Request::Providers { id: file });
            prop_assert_eq!(read(&providers), Some((id, Lookup::Providers { id: file })));
        }

        #[test]
        fn what_is_read_from_any_bytes_is_what_the_codec_reads(
            at in 0usize..200, to in any::<u8>(), cut in 0usize..200, query in "[a-z]{0,30}", find in any::<bool>(),
        ) {
            let providers = Request::Providers { id: FileId::from_bytes([7; 32]) };
            let request = if find { Request::Find { query } } else { providers };
            let mut header = codec::encode_request(RequestId(77), &request).to_vec();
            let length = header.len();
            header[at % length] = to;
            header.truncate(cut.max(length / 2));
            match read(&header) {
                Some((id, Lookup::Find { query })) => {
                    let query = query.to_owned();
                    prop_assert_eq!(codec::decode_request(&header), Ok((id, Request::Find { query })));
                }
                Some((id, Lookup::Providers { id: file })) => {
                    prop_assert_eq!(codec::decode_request(&header), Ok((id, Request::Providers { id: file })));
                }
                None => {}
            }
        }
    }

    #[test]
    fn other_requests_are_left_to_the_codec() {
        for request in
            [Request::Status, Request::Piece { id: FileId::from_bytes([1; 32]), index: 5, sparing: false }]
        {
            assert_eq!(read(&codec::encode_request(RequestId(5), &request)), None);
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

    /// What a reply names that all these were put into, and how many fitted.
    fn named(all: &[Provider], near: bool) -> (Vec<Provider>, usize) {
        let mut reply = ProvidersReply::default();
        let fits = |provider: &&Provider| {
            let encoded = EncodedPeer::new(&provider.peer, &provider.endpoints);
            reply.push(encoded.told(near).unwrap(), provider.size, provider.complete)
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
    fn encoded_providers_are_read_as_they_were_given() {
        let all: Vec<_> = (0..30).map(|n| provider(n, usize::from(n % 3) + 1)).collect();
        assert_eq!(named(&[], true), (Vec::new(), 0));
        for near in [true, false] {
            assert_eq!(named(&all, near), (all.clone(), 30));
        }
    }

    #[test]
    fn only_who_is_near_is_told_of_loopback_addresses() {
        let [here, elsewhere] = ["tcp://127.0.0.1:1", "tcp://10.0.0.1:1"].map(|text| text.parse().unwrap());
        let both = Provider { endpoints: vec![here, elsewhere], ..provider(1, 1) };
        assert_eq!(named(std::slice::from_ref(&both), true).0, std::slice::from_ref(&both));
        assert_eq!(named(std::slice::from_ref(&both), false).0[0].endpoints, both.endpoints[1..]);
        let hidden = EncodedPeer::new(&both.peer, &both.endpoints[..1]);
        assert!(hidden.told(true).is_some() && hidden.told(false).is_none());
        assert_eq!(EncodedPeer::new(&both.peer, &[]).told(true), None);
    }

    #[test]
    fn a_reply_names_no_more_than_it_may() {
        let many: Vec<_> = (0..150).map(|n| provider(n, 1)).collect();
        assert_eq!(named(&many, true), (many[..MAX_PROVIDERS].to_vec(), MAX_PROVIDERS));
        let large: Vec<_> = (0..150).map(|n| Provider { size: u64::MAX, ..provider(n, 40) }).collect();
        let (found, fitted) = named(&large, true);
        assert!((1..MAX_PROVIDERS).contains(&fitted) && found == large[..fitted], "{fitted}");
    }

    #[test]
    fn a_spliced_reply_is_the_one_that_the_codec_writes() {
        for id in [0, 23, 24, 255, 256, 65_536, 1 << 32, u64::MAX] {
            let id = RequestId(id);
            let expected = codec::encode_reply(Some(id), Ok(&Reply::Done));
            assert_eq!(reply(id, &codec::encode_body(&Reply::Done)), expected);
        }
    }
}
