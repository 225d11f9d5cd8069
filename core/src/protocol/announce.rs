//! Announcements without a serializer: they are the largest requests there are, and a tracker gets many of them.
//!
//! As in [`super::lookup`], only the usual way of writing is read, all others are left to [`super::codec`], and a test
//! holds the two together.

use crate::cbor::{ARRAY, UINT, take, take_array, take_head};
use crate::model::id::FileId;
use crate::model::record::Offer;
use crate::transport::envelope::RequestId;

use super::message::{Request, SessionId};

/// The fewest bytes that an offer takes.
const LEAST_OFFER: usize = 54;

/// Reads a [`Request::Announce`]; none where the header is something else, or written in another way.
pub fn read(header: &[u8]) -> Option<(RequestId, Request)> {
    let rest = &mut &*header;
    take(rest, b"\xa3\x61v\x01\x62id")?;
    let id = RequestId(take_head(rest, UINT)?);
    take(rest, b"\x63ask\xa1\x68announce\xa2\x67session\x50")?;
    let session = SessionId(take_array(rest)?);
    take(rest, b"\x66offers")?;
    let count = usize::try_from(take_head(rest, ARRAY)?).ok()?;
    // What it claims is not believed before the bytes are there.
    if count > rest.len() / LEAST_OFFER {
        return None;
    }
    let mut offers = Vec::with_capacity(count);
    for _ in 0..count {
        offers.push(read_offer(rest)?);
    }
    rest.is_empty().then_some((id, Request::Announce { session, offers }))
}

fn read_offer(rest: &mut &[u8]) -> Option<Offer> {
    take(rest, b"\xa3\x62id\x58\x20")?;
    let id = FileId::from_bytes(take_array(rest)?);
    take(rest, b"\x64size")?;
    let size = take_head(rest, UINT)?;
    take(rest, b"\x68complete")?;
    let complete = match take_array(rest)? {
        [0xf4] => false,
        [0xf5] => true,
        _ => return None,
    };
    Some(Offer { id, size, complete })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::codec;
    use proptest::prelude::*;

    fn offers() -> impl Strategy<Value = Vec<Offer>> {
        let offer = (any::<[u8; 32]>(), any::<u64>(), 0u32..64, any::<bool>());
        let offer = offer.prop_map(|(id, size, shift, complete)| Offer {
            id: FileId::from_bytes(id),
            size: size >> shift,
            complete,
        });
        prop::collection::vec(offer, 0..30)
    }

    fn request(offers: &[Offer]) -> Request {
        Request::Announce { session: SessionId([9; 16]), offers: offers.to_vec() }
    }

    proptest! {
        #[test]
        fn an_announcement_is_read_as_it_was_written(id in any::<u64>(), shift in 0u32..64, offers in offers()) {
            let (id, request) = (RequestId(id >> shift), request(&offers));
            let header = codec::encode_request(id, &request);
            prop_assert_eq!(codec::decode_any_request(&header), Some((id, request.clone())));
            prop_assert_eq!(read(&header), Some((id, request)));
        }

        #[test]
        fn what_is_read_from_changed_bytes_is_what_the_codec_reads(
            offers in offers(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cut in any::<prop::sample::Index>(), cuts in any::<bool>(), more in prop::collection::vec(any::<u8>(), 0..2),
        ) {
            let mut header = codec::encode_request(RequestId(77), &request(&offers)).to_vec();
            for (at, to) in changes {
                let at = at.index(header.len());
                header[at] = to;
            }
            if cuts {
                header.truncate(cut.index(header.len()));
            }
            header.extend(more);
            if let Some(found) = read(&header) {
                prop_assert_eq!(codec::decode_any_request(&header), Some(found));
            }
        }

        #[test]
        fn any_bytes_are_read_or_left(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let begun = codec::encode_request(RequestId(1), &request(&[]));
            let _ = read(&bytes);
            let _ = read(&[&begun[..begun.len() - 1], &bytes[..]].concat());
        }
    }

    #[test]
    fn a_count_without_the_bytes_is_left_to_the_codec() {
        let begun = codec::encode_request(RequestId(1), &request(&[]));
        let claims = [&begun[..begun.len() - 1], b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"].concat();
        assert_eq!(read(&claims), None);
    }

    #[test]
    fn other_requests_are_left_to_the_codec() {
        let withdraw = Request::Withdraw { session: SessionId([9; 16]), ids: Vec::new() };
        for request in [Request::Status, withdraw] {
            assert_eq!(read(&codec::encode_request(RequestId(5), &request)), None);
        }
    }
}
