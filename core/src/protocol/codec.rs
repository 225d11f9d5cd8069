//! Headers as CBOR (RFC 8949): `{"v": 1, "id": 7, "ask": {"find": {..}}}`, answered by
//! `{"v": 1, "id": 7, "reply": {"find": {..}}}` or `{"v": 1, "id": 7, "error": {"code": .., "message": ..}}`.
//!
//! The size of a header is bounded by the transport, its nesting here; what a declared length claims is never
//! allocated before the bytes are there.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::announce;
use super::error::{ErrorCode, ErrorReply};
use super::message::{Reply, Request};
use crate::transport::envelope::{self, MAX_NESTING, PROTOCOL_VERSION, RequestId};

#[derive(Serialize, Deserialize)]
struct RequestHeader<T> {
    v: u32,
    id: RequestId,
    ask: T,
}

#[derive(Serialize)]
struct ReplyHeaderRef<'a> {
    v: u32,
    id: Option<RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<&'a Reply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorReply>,
}

#[derive(Deserialize)]
struct ReplyHeader {
    reply: Option<Reply>,
    error: Option<ErrorReply>,
}

/// A request that cannot be understood: what to answer, and to which id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The request's id, where it could be read.
    pub id: Option<RequestId>,
    /// The answer.
    pub error: ErrorReply,
}

fn write(value: &impl Serialize) -> Bytes {
    let mut header = Vec::with_capacity(256);
    ciborium::into_writer(value, &mut header).expect("plain values are written to memory without fail");
    header.into()
}

fn read<T: DeserializeOwned>(header: &[u8]) -> Option<T> {
    let mut rest = header;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_NESTING).ok()?;
    rest.is_empty().then_some(value)
}

/// The header of a request.
pub fn encode_request(id: RequestId, request: &Request) -> Bytes {
    write(&RequestHeader { v: PROTOCOL_VERSION, id, ask: request })
}

/// Reads the header of a request.
pub fn decode_request(header: &[u8]) -> Result<(RequestId, Request), Refusal> {
    if let Some(found) = announce::read(header).or_else(|| decode_any_request(header)) {
        return Ok(found);
    }
    // Not understood: find out why, for the answer.
    let Some(envelope) = envelope::read(header) else {
        let message = "the header is not a CBOR map with v, id and ask";
        return Err(Refusal { id: None, error: ErrorReply::new(ErrorCode::Malformed, message) });
    };
    let refuse =
        |code, message: String| Err(Refusal { id: envelope.id, error: ErrorReply::new(code, message) });
    if envelope.version != PROTOCOL_VERSION {
        return refuse(
            ErrorCode::Unsupported,
            format!("protocol version {} is not spoken here, but {PROTOCOL_VERSION} is", envelope.version),
        );
    }
    match read::<RequestHeader<ciborium::Value>>(header).map(|header| kind_of(&header.ask)) {
        Some(Some(kind)) if !KINDS.contains(&kind.as_str()) => {
            let kind: String = kind.chars().take(40).collect();
            refuse(ErrorCode::Unsupported, format!("the kind of request {kind:?} is not known here"))
        }
        Some(Some(kind)) => {
            refuse(ErrorCode::Malformed, format!("the fields of the request {kind:?} are not right"))
        }
        _ => refuse(ErrorCode::Malformed, "the header is not a CBOR map with v, id and ask".to_owned()),
    }
}

/// Reads the header of a request, however it is written.
pub(super) fn decode_any_request(header: &[u8]) -> Option<(RequestId, Request)> {
    match read::<RequestHeader<Request>>(header)? {
        // The serializer takes a map without the value for a kind without fields.
        RequestHeader { ask: Request::Status, .. }
            if !read::<RequestHeader<ciborium::Value>>(header).is_some_and(|header| header.ask.is_text()) =>
        {
            None
        }
        RequestHeader { v: PROTOCOL_VERSION, id, ask } => Some((id, ask)),
        _ => None,
    }
}

/// The kinds of request of this version, as they are written on the wire.
pub const KINDS: [&str; 19] = [
    "hello",
    "publish",
    "announce",
    "withdraw",
    "renew",
    "leave",
    "pin",
    "unpin",
    "join",
    "introduce",
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

fn kind_of(ask: &ciborium::Value) -> Option<String> {
    match ask {
        ciborium::Value::Text(kind) => Some(kind.clone()),
        ciborium::Value::Map(entries) => match entries.as_slice() {
            [(ciborium::Value::Text(kind), _)] => Some(kind.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// The header of a reply. `id` is none only where the request's id could not be read.
pub fn encode_reply(id: Option<RequestId>, reply: Result<&Reply, &ErrorReply>) -> Bytes {
    write(&ReplyHeaderRef { v: PROTOCOL_VERSION, id, reply: reply.ok(), error: reply.err() })
}

/// A reply alone, without the header around it, see [`super::lookup::reply`].
pub fn encode_body(reply: &Reply) -> Bytes {
    write(reply)
}

/// Reads the header of a reply; `None` where it is not one that is known here.
pub fn decode_reply(header: &[u8]) -> Option<Result<Reply, ErrorReply>> {
    match read::<ReplyHeader>(header)? {
        ReplyHeader { reply: Some(reply), error: None } => Some(Ok(reply)),
        ReplyHeader { reply: None, error: Some(error) } => Some(Err(error)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::FileId;
    use ciborium::cbor;
    use proptest::prelude::*;

    fn bytes_of(value: ciborium::Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_request_and_both_replies_are_read_back() {
        let id = FileId::from_bytes([7; 32]);
        for request in
            [Request::Piece { id, index: 9, sparing: false }, Request::Status, Request::Hello { proof: None }]
        {
            let header = encode_request(RequestId(5), &request);
            assert_eq!(decode_request(&header), Ok((RequestId(5), request)));
        }
        let error =
            ErrorReply::new(ErrorCode::Busy, "later").retry_after(std::time::Duration::from_millis(50));
        assert_eq!(decode_reply(&encode_reply(None, Err(&error))), Some(Err(error)));
        assert_eq!(decode_reply(&encode_reply(Some(RequestId(1)), Ok(&Reply::Done))), Some(Ok(Reply::Done)));
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_kinds_are_unsupported() {
        let with_more = cbor!({
            "v" => 1, "id" => 3, "colour" => "red",
            "ask" => {"find" => {"query" => "a", "taste" => [1, 2]}}
        });
        let find = Request::Find { query: "a".to_owned() };
        assert_eq!(decode_request(&bytes_of(with_more.unwrap())), Ok((RequestId(3), find)));
        let unknown = cbor!({"v" => 1, "id" => 3, "ask" => {"dance" => {}}}).unwrap();
        let refusal = decode_request(&bytes_of(unknown)).unwrap_err();
        assert_eq!((refusal.id, refusal.error.code), (Some(RequestId(3)), ErrorCode::Unsupported));
        let newer = cbor!({"v" => 2, "id" => 3, "ask" => "status"}).unwrap();
        assert_eq!(decode_request(&bytes_of(newer)).unwrap_err().error.code, ErrorCode::Unsupported);
    }

    #[test]
    fn wrong_fields_are_malformed_under_the_request_s_id() {
        let wrong = cbor!({"v" => 1, "id" => 3, "ask" => {"find" => {"query" => 5}}}).unwrap();
        let refusal = decode_request(&bytes_of(wrong)).unwrap_err();
        assert_eq!((refusal.id, refusal.error.code), (Some(RequestId(3)), ErrorCode::Malformed));
        let mut surplus = encode_request(RequestId(1), &Request::Status).to_vec();
        surplus.push(0);
        assert_eq!(decode_request(&surplus).unwrap_err().error.code, ErrorCode::Malformed);
        // A map with a key and no value, which takes what follows for its own or is at the end.
        for cut in [
            &b"\xa3\x63ask\xa1\x66status\x61v\x01\x62id\x07"[..],
            b"\xa3\x61v\x01\x62id\x07\x63ask\xa1\x66status",
        ] {
            assert_eq!(decode_request(cut).unwrap_err().error.code, ErrorCode::Malformed);
        }
    }

    #[test]
    fn every_kind_is_in_the_list_of_kinds() {
        // A kind that is missing from the list would be answered as unsupported instead of malformed.
        for kind in KINDS {
            let wrong = cbor!({"v" => 1, "id" => 3, "ask" => {kind => 5}}).unwrap();
            assert_eq!(
                decode_request(&bytes_of(wrong)).unwrap_err().error.code,
                ErrorCode::Malformed,
                "{kind}"
            );
        }
        let error = serde::de::value::Error::to_string(
            &Request::deserialize(serde::de::value::StrDeserializer::new("?")).unwrap_err(),
        );
        assert_eq!(error.matches('`').count() / 2 - 1, KINDS.len(), "serde lists the variants: {error}");
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_request(&bytes);
            let _ = decode_reply(&bytes);
        }

        #[test]
        fn a_flipped_byte_gets_an_answer(at in 0usize..100, to in any::<u8>()) {
            let request = Request::Piece { id: FileId::from_bytes([1; 32]), index: 5, sparing: false };
            let mut header = encode_request(RequestId(5), &request).to_vec();
            let at = at % header.len();
            header[at] = to;
            let _ = decode_request(&header);
        }
    }
}
