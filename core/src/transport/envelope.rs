//! The envelope of a message: protocol version, request id, and the encoded request, reply or error.
//!
//! A header is a CBOR map (RFC 8949) with the entries `v`, `id`, and one of `request`, `reply` and `error`. Only this module
//! knows that layout. A transport parses each request once ([`EncodedRequest::parse`]); services dispatch by
//! [`EncodedRequest::kind`] and decode the fields with [`crate::protocol`].
//!
//! Headers with the usual encoding (entries in the order above, no other entries) are parsed without a serializer and
//! without a copy. Any other valid encoding is parsed by ciborium.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use bytes::{Buf, Bytes};
use ciborium::Value;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use crate::model::cbor::{self, TEXT, UINT, put_head, take_head};

/// The protocol version of this program.
pub const PROTOCOL_VERSION: u32 = 1;
/// Maximum nesting depth of the maps and arrays of a header.
pub const MAX_NESTING: usize = 16;
/// Maximum number of characters of the description of an invalid request.
const MAX_PROBLEM: usize = 300;

/// The start of a header with the usual encoding: `{"v": 1, "id": ..`.
const PREFIX: &[u8] = b"\xa3\x61v\x01\x62id";
/// The CBOR null.
const NULL: u8 = 0xf6;
/// The head of a CBOR map with one entry.
const MAP_OF_ONE: u8 = 0xa1;

/// Matches a reply to its request on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A request with a valid envelope: its id, its kind, and its encoded fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRequest {
    id: RequestId,
    /// A CBOR item: the kind as a text, or a map with one entry from the kind to its fields.
    item: Bytes,
    /// The bytes of the kind in `item`.
    kind: Range<usize>,
}

impl EncodedRequest {
    /// Parses the header of a request, except for its fields. If the header is malformed or has another protocol version,
    /// returns the header of the reply to send.
    pub fn parse(mut header: Bytes) -> Result<Self, Bytes> {
        if let Some((id, item)) = usual_request(&header)
            && let Some(kind) = kind_of(item)
        {
            // Takes over the header. A second handle to its bytes would cost an allocation.
            header.advance(header.len() - item.len());
            return Ok(Self { id, item: header, kind });
        }
        Self::parse_any(&header).ok_or_else(|| rejection(&header))
    }

    fn parse_any(header: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Header {
            v: u32,
            id: RequestId,
            request: Value,
        }
        let Header { v, id, request } = read(header, MAX_NESTING)?;
        if v != PROTOCOL_VERSION {
            return None;
        }
        let item = encode(Vec::new(), &request);
        let kind = kind_of(&item)?;
        Some(Self { id, item, kind })
    }

    /// The request id.
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// The kind, for example `find`.
    pub fn kind(&self) -> &str {
        // Checked by `kind_of`.
        std::str::from_utf8(&self.item[self.kind.clone()]).unwrap_or_default()
    }

    /// The CBOR of the fields, not validated yet; `None` for a kind without fields.
    pub fn fields(&self) -> Option<&[u8]> {
        (self.item[0] == MAP_OF_ONE).then(|| &self.item[self.kind.end..])
    }

    /// Decodes the kind and its fields. Returns `None` if they are not a valid `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Option<T> {
        decode(&self.item)
    }

    /// Describes why the fields are not a valid `T`: the path of the invalid field, and the cause.
    pub fn problem<T: DeserializeOwned>(&self) -> String {
        let cause = semantic_error::<T>(&self.item).unwrap_or_else(|| "invalid CBOR".to_owned());
        let path = semantic_error::<Located<T>>(&self.item).unwrap_or_default();
        let problem = match path.strip_prefix(self.kind()).and_then(|path| path.strip_prefix('.')) {
            Some(path) => format!("{path}: {cause}"),
            None => cause,
        };
        problem.chars().take(MAX_PROBLEM).collect()
    }
}

/// Decodes a `T`. The error is the path of the invalid field.
struct Located<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut track = serde_path_to_error::Track::new();
        let decoded = T::deserialize(serde_path_to_error::Deserializer::new(deserializer, &mut track));
        decoded.map(|_| Self(PhantomData)).map_err(|_| D::Error::custom(track.path()))
    }
}

fn semantic_error<T: DeserializeOwned>(mut item: &[u8]) -> Option<String> {
    match cbor::decode::<T>(&mut item, MAX_NESTING - 1) {
        Err(ciborium::de::Error::Semantic(_, problem)) => Some(problem),
        _ => None,
    }
}

fn usual_request(header: &[u8]) -> Option<(RequestId, &[u8])> {
    let mut rest = header.strip_prefix(PREFIX)?;
    let id = RequestId(take_head(&mut rest, UINT)?);
    Some((id, rest.strip_prefix(b"\x67request")?))
}

/// Returns the position of the kind in the item of a request.
fn kind_of(item: &[u8]) -> Option<Range<usize>> {
    let has_fields = *item.first()? == MAP_OF_ONE;
    let mut rest = &item[usize::from(has_fields)..];
    let length = usize::try_from(take_head(&mut rest, TEXT)?).ok()?;
    let start = item.len() - rest.len();
    let kind = start..start.checked_add(length)?;
    std::str::from_utf8(item.get(kind.clone())?).ok()?;
    (has_fields || kind.end == item.len()).then_some(kind)
}

/// An encoded reply, or an encoded error.
pub type EncodedReply<'a> = Result<Cow<'a, [u8]>, Cow<'a, [u8]>>;

/// Parses the header of a reply, except for the reply itself. Returns `None` if the header contains neither a reply nor an
/// error, or both.
pub fn parse_reply(header: &[u8]) -> Option<EncodedReply<'_>> {
    #[derive(Deserialize)]
    struct Header {
        reply: Option<Value>,
        error: Option<Value>,
    }
    if let Some(mut rest) = header.strip_prefix(PREFIX)
        && (take_head(&mut rest, UINT).is_some() || take_null(&mut rest))
    {
        if let Some(reply) = rest.strip_prefix(b"\x65reply") {
            return Some(Ok(reply.into()));
        }
        if let Some(error) = rest.strip_prefix(b"\x65error") {
            return Some(Err(error.into()));
        }
    }
    let owned = |value: Value| Cow::Owned(encode(Vec::new(), &value).into());
    match read(header, MAX_NESTING)? {
        Header { reply: Some(reply), error: None } => Some(Ok(owned(reply))),
        Header { reply: None, error: Some(error) } => Some(Err(owned(error))),
        _ => None,
    }
}

/// Decodes an item of [`parse_reply`]. Returns `None` if it is not a valid `T`.
pub fn decode<T: DeserializeOwned>(item: &[u8]) -> Option<T> {
    read(item, MAX_NESTING - 1)
}

/// Returns the request id of a header, or `None` if the header has no id or is malformed. Does not read further than the id
/// if the header has the usual encoding.
pub fn id_of(header: &[u8]) -> Option<RequestId> {
    usual_id(header).or_else(|| Start::read(header)?.id)
}

fn usual_id(header: &[u8]) -> Option<RequestId> {
    take_head(&mut header.strip_prefix(PREFIX)?, UINT).map(RequestId)
}

#[derive(Deserialize)]
struct Start {
    v: u32,
    id: Option<RequestId>,
}

impl Start {
    fn read(mut header: &[u8]) -> Option<Self> {
        cbor::decode(&mut header, MAX_NESTING).ok()
    }
}

/// The reply to a request that cannot be parsed.
fn rejection(header: &[u8]) -> Bytes {
    let start = match usual_id(header) {
        Some(id) => Some(Start { v: PROTOCOL_VERSION, id: Some(id) }),
        None => Start::read(header),
    };
    match start {
        Some(Start { v, id }) if v != PROTOCOL_VERSION => {
            let message = format!("protocol version {v} is not supported; use version {PROTOCOL_VERSION}");
            encode_error(id, &Error { code: "unsupported", message: &message, versions: &[PROTOCOL_VERSION] })
        }
        start => {
            let id = start.and_then(|start| start.id);
            malformed_reply(id, "the header is not a CBOR map with v, id and request")
        }
    }
}

/// Returns the header of a request.
pub fn encode_request(id: RequestId, request: &impl Serialize) -> Bytes {
    encode(begin(Some(id), "request", 256), request)
}

/// Returns the header of a reply.
pub fn encode_reply(id: Option<RequestId>, reply: &impl Serialize) -> Bytes {
    encode(begin(id, "reply", 256), reply)
}

/// Returns the header of an error reply. The id is `None` only if the id of the request is unreadable.
pub fn encode_error(id: Option<RequestId>, error: &impl Serialize) -> Bytes {
    encode(begin(id, "error", 256), error)
}

/// Returns the start of the header of a reply. The caller appends the encoded reply.
pub fn begin_reply(id: RequestId, capacity: usize) -> Vec<u8> {
    begin(Some(id), "reply", capacity)
}

/// Returns the header of a reply with the error `malformed`.
pub fn malformed_reply(id: Option<RequestId>, message: &str) -> Bytes {
    error_reply(id, "malformed", message)
}

/// Returns the header to send in place of a reply that exceeds the limits: the error `too_large`. Without any reply, the
/// requester would wait until its deadline.
pub fn too_large_reply(reply: &[u8]) -> Bytes {
    error_reply(id_of(reply), "too_large", "the reply exceeds the limits of this node")
}

fn error_reply(id: Option<RequestId>, code: &str, message: &str) -> Bytes {
    encode_error(id, &Error { code, message, versions: &[] })
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
    /// The supported protocol versions, if the version of the request is not among them.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    versions: &'a [u32],
}

/// Returns the start of a header: all but the item under `key`.
fn begin(id: Option<RequestId>, key: &str, capacity: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(capacity + 32);
    header.extend(PREFIX);
    match id {
        Some(id) => put_head(&mut header, UINT, id.0),
        None => header.push(NULL),
    }
    put_head(&mut header, TEXT, key.len() as u64);
    header.extend(key.as_bytes());
    header
}

/// Appends a value.
fn encode(mut header: Vec<u8>, value: &impl Serialize) -> Bytes {
    ciborium::into_writer(value, &mut header).expect("plain values are written to memory without failure");
    header.into()
}

/// Reads a single item.
fn read<T: DeserializeOwned>(mut item: &[u8], nesting: usize) -> Option<T> {
    let value = cbor::decode(&mut item, nesting).ok()?;
    item.is_empty().then_some(value)
}

fn take_null(rest: &mut &[u8]) -> bool {
    let behind = rest.strip_prefix(&[NULL]);
    *rest = behind.unwrap_or(rest);
    behind.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ciborium::cbor;
    use proptest::prelude::*;

    fn bytes_of(value: Value) -> Bytes {
        encode(Vec::new(), &value)
    }

    /// The id and code of an error reply.
    fn error_of(reply: &[u8]) -> (Option<RequestId>, String) {
        #[derive(Deserialize)]
        struct Error {
            code: String,
        }
        let error = parse_reply(reply).unwrap().unwrap_err();
        (id_of(reply), decode::<Error>(&error).unwrap().code)
    }

    #[test]
    fn request_in_any_encoding_is_parsed() {
        let fields = bytes_of(cbor!({"query" => "a"}).unwrap());
        let usual = encode_request(RequestId(7), &cbor!({"find" => {"query" => "a"}}).unwrap());
        let other =
            cbor!({"x" => [1], "request" => {"find" => {"query" => "a"}}, "id" => 7, "v" => 1}).unwrap();
        for header in [usual, bytes_of(other)] {
            let request = EncodedRequest::parse(header).unwrap();
            assert_eq!(
                (request.id(), request.kind(), request.fields()),
                (RequestId(7), "find", Some(&fields[..]))
            );
        }
        let plain = encode_request(RequestId(300), &"status");
        let request = EncodedRequest::parse(plain).unwrap();
        assert_eq!((request.id(), request.kind(), request.fields()), (RequestId(300), "status", None));
    }

    #[test]
    fn malformed_request_is_rejected_under_its_id() {
        let surplus = [&encode_request(RequestId(7), &"status")[..], &[0]].concat().into();
        let no_request = malformed_reply(Some(RequestId(7)), "");
        let two_kinds = encode_request(RequestId(7), &cbor!({"a" => {}, "b" => {}}).unwrap());
        let no_text = encode_request(RequestId(7), &cbor!({1 => {}}).unwrap());
        for header in [surplus, no_request, two_kinds, no_text] {
            let reply = EncodedRequest::parse(header.clone()).unwrap_err();
            assert_eq!(error_of(&reply), (Some(RequestId(7)), "malformed".to_owned()), "{header:?}");
        }
    }

    #[test]
    fn request_of_another_version_gets_the_supported_versions() {
        let newer = bytes_of(cbor!({"v" => 2, "id" => 3, "news" => "status"}).unwrap());
        let reply = EncodedRequest::parse(newer).unwrap_err();
        assert_eq!(error_of(&reply), (Some(RequestId(3)), "unsupported".to_owned()));
        #[derive(Deserialize)]
        struct Error {
            versions: Vec<u32>,
        }
        let error = parse_reply(&reply).unwrap().unwrap_err();
        assert_eq!(decode::<Error>(&error).unwrap().versions, [PROTOCOL_VERSION]);
    }

    #[test]
    fn header_without_envelope_is_malformed_without_id() {
        let deep = [vec![0xa1, 0x61, b'x'], vec![0x81; 5000], vec![0]].concat();
        let huge_array = [0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for bytes in [&b""[..], b"\xff", b"\xa0", &deep, &huge_array, b"hello"] {
            assert_eq!(id_of(bytes), None);
            let reply = EncodedRequest::parse(Bytes::copy_from_slice(bytes)).unwrap_err();
            assert_eq!(error_of(&reply), (None, "malformed".to_owned()));
        }
    }

    #[test]
    fn reply_in_any_encoding_is_parsed() {
        let done = bytes_of(cbor!("done").unwrap());
        for reply in [
            encode_reply(Some(RequestId(1)), &"done"),
            encode_reply(None, &"done"),
            bytes_of(cbor!({"reply" => "done", "id" => 1, "v" => 1, "error" => null}).unwrap()),
        ] {
            assert_eq!(parse_reply(&reply), Some(Ok(Cow::Borrowed(&done[..]))));
        }
        let both = bytes_of(cbor!({"reply" => "done", "id" => 1, "v" => 1, "error" => "x"}).unwrap());
        assert_eq!(parse_reply(&both), None);
    }

    proptest! {
        #[test]
        fn usual_encoding_is_parsed_like_any_other(
            at in any::<prop::sample::Index>(), to in any::<u8>(), id in any::<u64>(), kind in "[a-z]{0,30}",
        ) {
            let request = cbor!({kind => {"id" => 5}}).unwrap();
            let mut header = encode_request(RequestId(id), &request).to_vec();
            let at = at.index(header.len());
            header[at] = to;
            let header = Bytes::from(header);
            if let Some(any) = EncodedRequest::parse_any(&header) {
                let usual = EncodedRequest::parse(header).unwrap();
                prop_assert_eq!((usual.id, usual.kind()), (any.id, any.kind()));
                prop_assert_eq!(usual.decode::<Value>(), any.decode::<Value>());
            }
        }
    }
}
