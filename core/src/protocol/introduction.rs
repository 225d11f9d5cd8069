//! Introductions among the members of a swarm: what is looked at with every request and reply of a closed swarm, without a
//! serializer where it is something else.

use super::codec;
use super::error::ErrorCode;
use super::message::Request;
use crate::cbor::{UINT, take_head};
use crate::swarm::membership::SignedMembership;
use crate::transport::envelope::RequestId;

/// What stands behind the version and the id, if a header is written as usual.
fn behind_id(header: &[u8]) -> Option<&[u8]> {
    let mut rest = header.strip_prefix(b"\xa3\x61v\x01\x62id")?;
    take_head(&mut rest, UINT)?;
    Some(rest)
}

/// Reads an introduction; none where the header is something else, or written in another way.
pub fn read(header: &[u8]) -> Option<(RequestId, SignedMembership)> {
    if !behind_id(header)?.starts_with(b"\x63ask\xa1\x69introduce") {
        return None;
    }
    match codec::decode_request(header) {
        Ok((id, Request::Introduce { membership })) => Some((id, membership)),
        _ => None,
    }
}

/// Whether the header of a reply says `unauthorized`.
pub fn is_unauthorized(header: &[u8]) -> bool {
    if behind_id(header).is_some_and(|rest| rest.starts_with(b"\x65reply")) {
        return false;
    }
    matches!(codec::decode_reply(header), Some(Err(error)) if error.code == ErrorCode::Unauthorized)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{FileId, PeerId};
    use crate::model::identity::KeyPair;
    use crate::protocol::error::ErrorReply;
    use crate::protocol::message::Reply;
    use crate::swarm::authority::Authority;
    use crate::swarm::membership::Rights;
    use proptest::prelude::*;

    #[test]
    fn introductions_and_refusals_are_known_among_all_messages() {
        let authority = Authority::new(KeyPair::from_secret(&[1; 32]));
        let membership = authority.admit(PeerId::from_bytes([1; 32]), Rights::Full, 5);
        let id = RequestId(1 << 40);
        let introduce = codec::encode_request(id, &Request::Introduce { membership });
        assert_eq!(read(&introduce), Some((id, membership)));
        let piece = Request::Piece { id: FileId::from_bytes([1; 32]), index: 1, sparing: false };
        assert_eq!(read(&codec::encode_request(id, &piece)), None);
        let error = |code| codec::encode_reply(Some(id), Err(&ErrorReply::new(code, "why")));
        assert!(is_unauthorized(&error(ErrorCode::Unauthorized)));
        assert!(!is_unauthorized(&error(ErrorCode::Busy)));
        assert!(!is_unauthorized(&codec::encode_reply(Some(id), Ok(&Reply::Piece))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_something_else(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(read(&bytes), None);
            prop_assert!(!is_unauthorized(&bytes));
            let nearly = [&b"\xa3\x61v\x01\x62id\x07\x63ask\xa1\x69introduce"[..], &bytes].concat();
            let _ = read(&nearly);
        }
    }
}
