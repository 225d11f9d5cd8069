//! Look-ups without a serializer: the few requests that a tracker is asked most often are read as they usually are
//! written, and their replies are put together from parts that were encoded before.
//!
//! Whatever is written in another way (another order of fields, unknown ones, other lengths of a number) is left to
//! [`super::codec`], which reads every form; a test holds the two together.

use bytes::Bytes;
use rand::seq::SliceRandom;

use super::message::MAX_PROVIDERS;
use crate::model::id::FileId;
use crate::model::record::Provider;
use crate::transport::envelope::RequestId;

/// How many bytes the providers in one reply take at most, so that it stays below the limit of a header.
pub const MAX_PROVIDER_BYTES: usize = 48 * 1024;

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

/// The types of CBOR that are read and written here (RFC 8949, section 3.1).
const UINT: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;

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

fn take_head(rest: &mut &[u8], kind: u8) -> Option<u64> {
    let (first, behind) = rest.split_first()?;
    if first >> 5 != kind {
        return None;
    }
    let length = match first & 0x1f {
        value @ 0..=23 => {
            *rest = behind;
            return Some(u64::from(value));
        }
        size @ 24..=27 => 1 << (size - 24),
        _ => return None,
    };
    let (number, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    Some(number.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn put_head(bytes: &mut Vec<u8>, kind: u8, value: u64) {
    let kind = kind << 5;
    match value {
        0..=23 => bytes.push(kind | value as u8),
        24..=0xff => bytes.extend([kind | 24, value as u8]),
        0x100..=0xffff => {
            bytes.push(kind | 25);
            bytes.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            bytes.push(kind | 26);
            bytes.extend((value as u32).to_be_bytes());
        }
        _ => {
            bytes.push(kind | 27);
            bytes.extend(value.to_be_bytes());
        }
    }
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

/// Providers that are ready to be sent.
#[derive(Debug, Default)]
pub struct EncodedProviders {
    bytes: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<u32>,
}

impl EncodedProviders {
    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }

    /// Adds one.
    pub fn push(&mut self, provider: &Provider) {
        let bytes = &mut self.bytes;
        bytes.extend(b"\xa4\x64peer");
        put_head(bytes, BYTES, 32);
        bytes.extend(provider.peer.as_bytes());
        put_text(bytes, "endpoints");
        put_head(bytes, ARRAY, provider.endpoints.len() as u64);
        for endpoint in &provider.endpoints {
            put_text(bytes, &endpoint.to_string());
        }
        put_text(bytes, "size");
        put_head(bytes, UINT, provider.size);
        put_text(bytes, "complete");
        bytes.push(if provider.complete { 0xf5 } else { 0xf4 });
        self.ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    }

    /// The header of a reply that names them, in random order and as many as it may.
    pub fn reply(&self, id: RequestId) -> Bytes {
        let all: Vec<u32> = (0..self.ends.len() as u32).collect();
        let mut order = all;
        let (chosen, _) = order.partial_shuffle(&mut rand::rng(), MAX_PROVIDERS);
        let mut room = MAX_PROVIDER_BYTES;
        let mut count = 0;
        for at in chosen.iter() {
            match room.checked_sub(self.item(*at).len()) {
                Some(left) => room = left,
                None => break,
            }
            count += 1;
        }
        let mut header = begin_reply(id, MAX_PROVIDER_BYTES - room);
        header.extend(b"\xa1\x69providers\xa1\x69providers");
        put_head(&mut header, ARRAY, count as u64);
        for at in &chosen[..count] {
            header.extend(self.item(*at));
        }
        header.into()
    }

    fn item(&self, at: u32) -> &[u8] {
        let at = at as usize;
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.bytes[begin..self.ends[at] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;
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

    fn named(encoded: &EncodedProviders) -> Vec<Provider> {
        let header = encoded.reply(RequestId(300));
        assert!(header.len() < 64 * 1024);
        match codec::decode_reply(&header) {
            Some(Ok(Reply::Providers { providers })) => providers,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn encoded_providers_are_read_as_they_were_given_in_another_order() {
        let all: Vec<_> = (0..30).map(|n| provider(n, usize::from(n % 3) + 1)).collect();
        let mut encoded = EncodedProviders::default();
        assert!(named(&encoded).is_empty());
        all.iter().for_each(|provider| encoded.push(provider));
        let first = named(&encoded);
        let mut sorted = first.clone();
        sorted.sort_by_key(|provider| provider.peer);
        assert_eq!(sorted, all);
        assert!((0..10).any(|_| named(&encoded) != first), "the order is random");
    }

    #[test]
    fn a_reply_names_no_more_than_it_may() {
        let mut encoded = EncodedProviders::default();
        (0..150).for_each(|n| encoded.push(&provider(n, 1)));
        assert_eq!(named(&encoded).len(), MAX_PROVIDERS);
        let mut large = EncodedProviders::default();
        (0..150).for_each(|n| large.push(&provider(n, 40)));
        let count = named(&large).len();
        assert!((1..MAX_PROVIDERS).contains(&count), "{count}");
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
