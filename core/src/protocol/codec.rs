//! Encoding of requests and replies as CBOR (RFC 8949). The header around them is the business of
//! [`crate::transport::envelope`].
//!
//! The transport bounds the size of a header, and the envelope its nesting depth.

use bytes::Bytes;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde::de::value::{Error as ValueError, StringDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};

use super::announce;
use super::error::{ErrorCode, ErrorReply};
use super::message::{Reply, Request};
use crate::transport::envelope::{self, EncodedRequest, RequestId};

/// The kinds of request of this protocol version.
pub const KINDS: [&str; 20] = [
    "open_session",
    "publish",
    "announce",
    "withdraw",
    "renew",
    "leave",
    "pin",
    "unpin",
    "pins",
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
    // Serde accepts a missing value for a kind without fields.
    let complete = |decoded: &Request| !matches!(decoded, Request::Status) || request.fields().is_none();
    request.decode().filter(complete).or_else(|| kind_without_fields(request.decode()?))
}

/// Decodes a kind without fields in the form of a kind with fields: `{"status": {}}`. Ignores unknown fields.
fn kind_without_fields<T: DeserializeOwned>(map: BTreeMap<String, NoFields>) -> Option<T> {
    let (kind, NoFields {}) = map.into_iter().next()?;
    let kind: StringDeserializer<ValueError> = kind.into_deserializer();
    T::deserialize(kind).ok()
}

/// A map in which all entries are unknown.
#[derive(Deserialize)]
struct NoFields {}

fn refusal(request: &EncodedRequest) -> ErrorReply {
    let kind = request.kind();
    if request.decode::<IgnoredAny>().is_none() || KINDS.contains(&kind) {
        return ErrorReply::new(
            ErrorCode::Malformed,
            format!("invalid request {}: {}", quoted(kind), request.problem::<Request>()),
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
        Ok(reply) => {
            let decoded = envelope::decode(&reply);
            decoded.or_else(|| kind_without_fields(envelope::decode(&reply)?)).map(Ok)
        }
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

    fn bytes(length: usize) -> Value {
        Value::Bytes(vec![1; length])
    }

    #[test]
    fn absent_and_null_optional_fields_are_equal() {
        let optional = [
            ("open_session", cbor!({}), &["proof"][..]),
            ("renew", cbor!({"session" => bytes(16)}), &["membership"]),
            ("pins", cbor!({"session" => bytes(16)}), &["after"]),
            ("list", cbor!({"limit" => 1}), &["pattern", "cursor"]),
            ("have", cbor!({"id" => bytes(32)}), &["wait"]),
            ("piece", cbor!({"id" => bytes(32), "index" => 1}), &["super_seed"]),
        ];
        for (kind, fields, names) in optional {
            let Value::Map(mut fields) = fields.unwrap() else { panic!("{kind}") };
            let absent = parse(&header(cbor!({kind => Value::Map(fields.clone())}).unwrap())).1;
            fields.extend(names.iter().map(|name| ((*name).into(), Value::Null)));
            assert_eq!(parse(&header(cbor!({kind => Value::Map(fields)}).unwrap())).1, absent);
            assert!(absent.is_ok(), "{absent:?}");
        }
        let error = cbor!({"code" => "busy", "message" => "", "retry_after" => null, "matches" => null});
        let error = decode_reply(&envelope::encode_error(None, &error.unwrap()));
        assert_eq!(error, Some(Err(ErrorReply::new(ErrorCode::Busy, ""))));
        let reply = cbor!({"renewed" => {
            "now_ms" => 1, "gaps" => [], "endpoints" => [], "membership" => null, "revocations" => null, "more" => null,
        }});
        assert!(decode_reply(&envelope::encode_reply(None, &reply.unwrap())).is_some());
    }

    #[test]
    fn kinds_without_fields_accept_an_empty_map() {
        for fields in [cbor!({}), cbor!({"later" => [1]})] {
            let status = cbor!({"status" => fields.unwrap()}).unwrap();
            assert_eq!(parse(&header(status)).1, Ok(Request::Status));
        }
        for (kind, reply) in
            [("done", Reply::Done), ("piece", Reply::Piece), ("already_sent", Reply::AlreadySent)]
        {
            let header = envelope::encode_reply(None, &cbor!({kind => {}}).unwrap());
            assert_eq!(decode_reply(&header), Some(Ok(reply)));
        }
        for fields in [Value::Null, Value::Array(Vec::new())] {
            assert_eq!(code(&header(cbor!({"status" => fields}).unwrap())), ErrorCode::Malformed);
        }
    }

    #[test]
    fn malformed_request_names_the_invalid_field() {
        let message = |request: Value| parse(&header(request)).1.unwrap_err().message;
        assert_eq!(
            message(cbor!({"find" => {"query" => 5}}).unwrap()),
            "invalid request \"find\": query: invalid type: integer `5`, expected string"
        );
        let offers = cbor!({"id" => bytes(32), "size" => "x", "complete" => true}).unwrap();
        let announce = cbor!({"announce" => {"session" => bytes(16), "offers" => [offers]}}).unwrap();
        assert!(message(announce).contains(": offers[0].size: "));
        let missing = message(cbor!({"piece" => {"id" => bytes(32)}}).unwrap());
        assert_eq!(missing, "invalid request \"piece\": missing field `index`");
        let long = message(cbor!({"find" => {"query" => bytes(5_000)}}).unwrap());
        assert!(long.len() < 500, "{long}");
    }

    #[test]
    fn ids_are_byte_strings_only() {
        let text = Value::Text("a".repeat(32));
        for id in [text, Value::Array(vec![1.into(); 32]), bytes(31)] {
            let invalid = cbor!({"providers" => {"id" => id.clone()}}).unwrap();
            assert_eq!(code(&header(invalid)), ErrorCode::Malformed, "{id:?}");
            assert_eq!(code(&header(cbor!({"leave" => {"session" => id}}).unwrap())), ErrorCode::Malformed);
        }
        for cursor in [Value::Text("a".to_owned()), Value::Array(vec![1.into()])] {
            let list = cbor!({"list" => {"limit" => 1, "cursor" => cursor}}).unwrap();
            assert_eq!(code(&header(list)), ErrorCode::Malformed);
        }
    }

    #[test]
    fn endpoint_to_sign_in_another_notation_is_malformed() {
        let open = |endpoint: &str| {
            let proof = cbor!({
                "key" => bytes(32), "nonce" => bytes(32), "signature" => bytes(64), "endpoints" => [endpoint],
            });
            parse(&header(cbor!({"open_session" => {"proof" => proof.unwrap()}}).unwrap())).1
        };
        assert!(open("tcp://peer.example.org:1").is_ok());
        for endpoint in ["tcp://Peer.example.org:1", "tcp://[::0:1]:1", "tcp://h:01", "tcp://127.1:1", "h"] {
            let error = open(endpoint).unwrap_err();
            assert_eq!(error.code, ErrorCode::Malformed);
            assert!(
                error.message.contains("open_session") && error.message.contains("proof.endpoints"),
                "{error}"
            );
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
