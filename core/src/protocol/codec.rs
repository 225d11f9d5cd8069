//! Encoding of requests and replies as CBOR (RFC 8949). The header around them is the business of
//! [`crate::transport::envelope`].
//!
//! The transport bounds the size of a header, and the envelope its nesting depth.

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::announce;
use super::error::{ErrorCode, ErrorReply};
use super::message::{Reply, Request};
use crate::transport::envelope::{self, EncodedRequest, RequestId};

/// The kinds of request of this protocol version.
pub const KINDS: [&str; 19] = [
    "open_session",
    "publish",
    "announce",
    "withdraw",
    "renew",
    "leave",
    "pin",
    "unpin",
    "join",
    "authorize",
    "find",
    "providers",
    "list",
    "status",
    "manifest",
    "have",
    "piece",
    "files",
    "cancel",
];

/// Maximum number of characters of an unknown kind in an error message.
const MAX_QUOTED_KIND: usize = 40;

/// Returns the header of a request.
pub fn encode_request(id: RequestId, request: &Request) -> Bytes {
    envelope::encode_request(id, request)
}

/// Decodes a request. The error is the reply to send.
pub fn decode_request(request: &EncodedRequest) -> Result<Request, ErrorReply> {
    announce::decode(request).or_else(|| decode_any(request)).ok_or_else(|| refusal(request))
}

/// Decodes a request in any encoding.
pub(super) fn decode_any(request: &EncodedRequest) -> Option<Request> {
    let decoded: Request = request.decode()?;
    // Serde accepts fields for a kind without fields.
    let surplus = matches!(decoded, Request::Status) && request.fields().is_some();
    (!surplus).then_some(decoded)
}

fn refusal(request: &EncodedRequest) -> ErrorReply {
    let kind = request.kind();
    if request.decode::<IgnoredAny>().is_none() || KINDS.contains(&kind) {
        return ErrorReply::new(
            ErrorCode::Malformed,
            format!("invalid fields in the request {}", quoted(kind)),
        );
    }
    ErrorReply::new(ErrorCode::Unsupported, format!("unknown kind of request {}", quoted(kind)))
}

fn quoted(kind: &str) -> String {
    format!("{:?}", kind.chars().take(MAX_QUOTED_KIND).collect::<String>())
}

/// Returns the header of a reply. The id is `None` only if the id of the request is unreadable.
pub fn encode_reply(id: Option<RequestId>, reply: Result<&Reply, &ErrorReply>) -> Bytes {
    match reply {
        Ok(reply) => envelope::encode_reply(id, reply),
        Err(error) => envelope::encode_error(id, error),
    }
}

/// Encodes a reply without its header, see [`super::lookup::reply`].
pub fn encode_body(reply: &Reply) -> Bytes {
    let mut body = Vec::with_capacity(256);
    ciborium::into_writer(reply, &mut body).expect("plain values are written to memory without failure");
    body.into()
}

/// Decodes the header of a reply. Returns `None` if it is malformed or of an unknown kind.
pub fn decode_reply(header: &[u8]) -> Option<Result<Reply, ErrorReply>> {
    match envelope::parse_reply(header)? {
        Ok(reply) => envelope::decode(&reply).map(Ok),
        Err(error) => envelope::decode(&error).map(Err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::FileId;
    use ciborium::{Value, cbor};
    use proptest::prelude::*;
    use serde::Deserialize;

    fn parse(header: &Bytes) -> (RequestId, Result<Request, ErrorReply>) {
        let request = EncodedRequest::parse(header.clone()).unwrap();
        (request.id(), decode_request(&request))
    }

    fn header(request: Value) -> Bytes {
        envelope::encode_request(RequestId(3), &request)
    }

    fn code(header: &Bytes) -> ErrorCode {
        parse(header).1.unwrap_err().code
    }

    #[test]
    fn encoded_requests_and_replies_are_decoded() {
        let id = FileId::from_bytes([7; 32]);
        for request in [
            Request::Piece { id, index: 9, super_seed: false },
            Request::Status,
            Request::OpenSession { proof: None },
        ] {
            assert_eq!(parse(&encode_request(RequestId(5), &request)), (RequestId(5), Ok(request)));
        }
        let error =
            ErrorReply::new(ErrorCode::Busy, "later").retry_after(std::time::Duration::from_millis(50));
        assert_eq!(decode_reply(&encode_reply(None, Err(&error))), Some(Err(error)));
        assert_eq!(decode_reply(&encode_reply(Some(RequestId(1)), Ok(&Reply::Done))), Some(Ok(Reply::Done)));
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_kinds_unsupported() {
        let with_more = header(cbor!({"find" => {"query" => "a", "taste" => [1, 2]}}).unwrap());
        let find = Request::Find { query: "a".to_owned() };
        assert_eq!(parse(&with_more), (RequestId(3), Ok(find)));
        assert_eq!(code(&header(cbor!({"dance" => {}}).unwrap())), ErrorCode::Unsupported);
    }

    #[test]
    fn invalid_fields_are_malformed() {
        assert_eq!(code(&header(cbor!({"find" => {"query" => 5}}).unwrap())), ErrorCode::Malformed);
        assert_eq!(code(&header(cbor!({"status" => {}}).unwrap())), ErrorCode::Malformed);
        assert_eq!(code(&header(cbor!("find").unwrap())), ErrorCode::Malformed);
        // A map whose value is missing or has trailing bytes.
        let status = header(cbor!({"status" => 0}).unwrap());
        let dance = header(cbor!({"dance" => 0}).unwrap());
        for whole in [status, dance] {
            let surplus = Bytes::from([&whole[..], &[0]].concat());
            for invalid in [whole.slice(..whole.len() - 1), surplus] {
                assert_eq!(code(&invalid), ErrorCode::Malformed);
            }
        }
    }

    #[test]
    fn list_of_kinds_is_complete() {
        // A kind that is missing from the list would be answered as unsupported instead of malformed.
        for kind in KINDS {
            assert_eq!(code(&header(cbor!({kind => 5}).unwrap())), ErrorCode::Malformed, "{kind}");
        }
        let error = serde::de::value::Error::to_string(
            &Request::deserialize(serde::de::value::StrDeserializer::new("?")).unwrap_err(),
        );
        assert_eq!(error.matches('`').count() / 2 - 1, KINDS.len(), "serde lists the variants: {error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_reply(&bytes);
            if let Ok(request) = EncodedRequest::parse(bytes.into()) {
                let _ = decode_request(&request);
            }
        }

        #[test]
        fn changed_request_is_accepted_or_refused(at in 0usize..100, to in any::<u8>()) {
            let request = Request::Piece { id: FileId::from_bytes([1; 32]), index: 5, super_seed: false };
            let mut header = encode_request(RequestId(5), &request).to_vec();
            let at = at % header.len();
            header[at] = to;
            if let Ok(request) = EncodedRequest::parse(header.into()) {
                let _ = decode_request(&request);
            }
        }
    }
}
