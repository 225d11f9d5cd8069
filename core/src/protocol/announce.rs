//! Decoder for the usual encoding of `announce` requests, without a serializer.
//!
//! These are the largest requests, and a tracker receives many of them. For 800 offers, this decoder takes 3 % of the time of
//! ciborium (bench `codec`). As in [`super::lookup`], any other encoding is left to [`super::codec`], and tests compare both
//! decoders.

use super::message::Request;
use crate::model::cbor::{ARRAY, UINT, take, take_array, take_head};
use crate::model::id::FileId;
use crate::model::record::Offer;
use crate::model::session::SessionId;
use crate::transport::envelope::EncodedRequest;

/// The size of the smallest encoded offer.
const MIN_OFFER: usize = 54;

/// Decodes an `announce` request. Returns `None` if the request has another kind or encoding.
pub fn decode(request: &EncodedRequest) -> Option<Request> {
    if request.kind() != "announce" {
        return None;
    }
    let rest = &mut request.fields()?;
    take(rest, b"\xa2\x67session\x50")?;
    let session = SessionId(take_array(rest)?);
    take(rest, b"\x66offers")?;
    let count = usize::try_from(take_head(rest, ARRAY)?).ok()?;
    // Do not allocate for a claimed count.
    if count > rest.len() / MIN_OFFER {
        return None;
    }
    let mut offers = Vec::with_capacity(count);
    for _ in 0..count {
        offers.push(decode_offer(rest)?);
    }
    rest.is_empty().then_some(Request::Announce { session, offers })
}

fn decode_offer(rest: &mut &[u8]) -> Option<Offer> {
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
    use crate::transport::envelope::{self, RequestId};
    use bytes::Bytes;
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

    fn announce(offers: &[Offer]) -> Request {
        Request::Announce { session: SessionId([9; 16]), offers: offers.to_vec() }
    }

    fn header(request: &Request) -> Bytes {
        envelope::encode_request(RequestId(77), request)
    }

    fn parse(header: impl Into<Bytes>) -> Option<EncodedRequest> {
        EncodedRequest::parse(header.into()).ok()
    }

    /// The header of an announcement without the array of its offers.
    fn start() -> Vec<u8> {
        let mut start = header(&announce(&[])).to_vec();
        start.pop();
        start
    }

    proptest! {
        #[test]
        fn encoded_announcement_is_decoded(offers in offers()) {
            let announce = announce(&offers);
            let request = parse(header(&announce)).unwrap();
            prop_assert_eq!(request.decode(), Some(announce.clone()));
            prop_assert_eq!(decode(&request), Some(announce));
        }

        #[test]
        fn changed_announcement_is_decoded_like_by_ciborium(
            offers in offers(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cut in any::<prop::sample::Index>(), cuts in any::<bool>(), more in prop::collection::vec(any::<u8>(), 0..2),
        ) {
            let mut header = header(&announce(&offers)).to_vec();
            for (at, to) in changes {
                let at = at.index(header.len());
                header[at] = to;
            }
            if cuts {
                header.truncate(cut.index(header.len()));
            }
            header.extend(more);
            if let Some(request) = parse(header) && let Some(decoded) = decode(&request) {
                prop_assert_eq!(request.decode(), Some(decoded));
            }
        }

        #[test]
        fn any_offers_are_decoded_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(request) = parse([&start()[..], &bytes].concat()) {
                let _ = decode(&request);
            }
        }
    }

    #[test]
    fn claimed_count_without_offers_is_rejected() {
        let claims = parse([&start()[..], b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"].concat()).unwrap();
        assert_eq!(decode(&claims), None);
    }

    #[test]
    fn other_kinds_are_left_to_the_codec() {
        let withdraw = Request::Withdraw { session: SessionId([9; 16]), ids: Vec::new() };
        for request in [Request::Status, withdraw] {
            assert_eq!(decode(&parse(header(&request)).unwrap()), None);
        }
    }
}
