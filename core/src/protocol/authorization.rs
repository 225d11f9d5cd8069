//! Authorization messages between the members of an invite-only swarm.
//!
//! A node examines every request and reply for them, so other kinds are recognized without a serializer.

use super::codec;
use super::error::{ErrorCode, ErrorReply};
use super::message::Request;
use crate::model::membership::SignedMembership;
use crate::transport::envelope::{self, EncodedRequest};

/// Returns the membership in an `authorize` request, or `None` if the request has another kind or is malformed.
pub fn membership_of(request: &EncodedRequest) -> Option<SignedMembership> {
    if request.kind() != "authorize" {
        return None;
    }
    match codec::decode_request(request) {
        Ok(Request::Authorize { membership }) => Some(membership),
        _ => None,
    }
}

/// Returns whether the header of a reply contains the error `unauthorized`.
pub fn is_unauthorized(header: &[u8]) -> bool {
    match envelope::parse_reply(header) {
        Some(Err(error)) => {
            envelope::decode::<ErrorReply>(&error).is_some_and(|error| error.code == ErrorCode::Unauthorized)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{FileId, PeerId};
    use crate::model::identity::KeyPair;
    use crate::model::membership::{Membership, Rights};
    use crate::model::time::UnixMillis;
    use crate::protocol::message::Reply;
    use crate::transport::envelope::RequestId;
    use proptest::prelude::*;

    fn parse(header: bytes::Bytes) -> EncodedRequest {
        EncodedRequest::parse(header).unwrap()
    }

    #[test]
    fn authorize_and_unauthorized_are_recognized() {
        let peer = PeerId::from_bytes([1; 32]);
        let membership =
            Membership { peer, rights: Rights::Full, from: UnixMillis(5), until: UnixMillis(10) };
        let membership = membership.sign(&KeyPair::from_secret(&[1; 32]));
        let id = RequestId(1 << 40);
        let authorize = codec::encode_request(id, &Request::Authorize { membership });
        assert_eq!(membership_of(&parse(authorize)), Some(membership));
        let piece = Request::Piece { id: FileId::from_bytes([1; 32]), index: 1, super_seed: false };
        assert_eq!(membership_of(&parse(codec::encode_request(id, &piece))), None);
        let error = |code| codec::encode_reply(Some(id), Err(&ErrorReply::new(code, "why")));
        assert!(is_unauthorized(&error(ErrorCode::Unauthorized)));
        assert!(!is_unauthorized(&error(ErrorCode::Busy)));
        assert!(!is_unauthorized(&codec::encode_reply(Some(id), Ok(&Reply::Piece))));
    }

    proptest! {
        #[test]
        fn any_fields_are_decoded_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!is_unauthorized(&bytes));
            let start = envelope::encode_request(RequestId(7), &"authorize");
            let kind = start.len() - 10;
            let header = [&start[..kind], &[0xa1], &start[kind..], &bytes].concat();
            let _ = membership_of(&parse(header.into()));
        }
    }
}
