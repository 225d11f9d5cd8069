//! Bounds of decoded values, in addition to the limit of a header.
//!
//! A text that is only shown is shortened. A list with too many elements is an error, because it violates the protocol.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::model::endpoint::Endpoint;

/// Maximum length in bytes of a text that is only shown, such as the message of an error.
pub const MAX_TEXT: usize = 1024;
/// Maximum number of files in an `ambiguous` error.
pub const MAX_MATCHES: usize = 16;
/// Maximum length in bytes of the cursor of a list.
pub const MAX_CURSOR: usize = 1024;

/// Decodes a text and shortens it to [`MAX_TEXT`].
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let mut text = String::deserialize(deserializer)?;
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    Ok(text)
}

/// Decodes a list of at most `MAX` elements.
pub(super) fn list<'de, D, T, L, const MAX: usize>(deserializer: D) -> Result<L, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
    L: From<Vec<T>>,
{
    bounded::<D, T, L, MAX>(Vec::deserialize(deserializer)?)
}

/// Decodes an optional list of at most `MAX` elements.
pub(super) fn optional_list<'de, D, T, L, const MAX: usize>(deserializer: D) -> Result<L, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
    L: From<Vec<T>>,
{
    bounded::<D, T, L, MAX>(or_default(deserializer)?)
}

fn bounded<'de, D, T, L, const MAX: usize>(list: Vec<T>) -> Result<L, D::Error>
where
    D: Deserializer<'de>,
    L: From<Vec<T>>,
{
    if list.len() > MAX {
        return Err(D::Error::custom(format_args!("a list has more than {MAX} elements")));
    }
    Ok(list.into())
}

/// Decodes a value that may be null, which means the same as absence.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Decodes an optional byte string. Unlike `serde_bytes`, accepts neither a text nor an array of numbers.
pub(super) fn byte_string<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: From<Vec<u8>>,
{
    Ok(Option::<ByteString>::deserialize(deserializer)?.map(|bytes| bytes.0.into()))
}

struct ByteString(Vec<u8>);

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(ByteStringVisitor)
    }
}

struct ByteStringVisitor;

impl Visitor<'_> for ByteStringVisitor {
    type Value = ByteString;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<ByteString, E> {
        Ok(ByteString(bytes.to_vec()))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<ByteString, E> {
        Ok(ByteString(bytes))
    }
}

/// Decodes endpoints in canonical form. Another form would be signed differently by the sender and by the receiver.
pub(super) fn canonical_endpoints<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Endpoint>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: String| {
        let endpoint: Endpoint = text.parse().map_err(D::Error::custom)?;
        if endpoint.to_string() == text {
            return Ok(endpoint);
        }
        Err(D::Error::custom(format_args!("endpoint {text:?} is not in its canonical form {endpoint}")))
    };
    texts.into_iter().map(parse).collect()
}

/// Decodes an optional cursor of at most [`MAX_CURSOR`] bytes.
pub(super) fn cursor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    let cursor: Option<Vec<u8>> = byte_string(deserializer)?;
    if cursor.as_ref().is_some_and(|cursor| cursor.len() > MAX_CURSOR) {
        return Err(D::Error::custom("the cursor is too long"));
    }
    Ok(cursor)
}

/// Decodes a number. Larger numbers become the largest one, which is beyond any limit that follows.
pub(super) fn saturating_u32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(u32::try_from(u64::deserialize(deserializer)?).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::FileId;
    use crate::protocol::codec::{decode_reply, decode_request};
    use crate::protocol::message::Request;
    use crate::transport::envelope::{EncodedRequest, RequestId, encode_error, encode_reply, encode_request};
    use ciborium::{Value, cbor};

    fn request(item: &Value) -> Option<Request> {
        let request = EncodedRequest::parse(encode_request(RequestId(1), item)).ok()?;
        decode_request(&request).ok()
    }

    #[test]
    fn numbers_beyond_32_bits_become_the_largest() {
        for large in [u64::from(u32::MAX), 1 << 32, u64::MAX] {
            let list = request(&cbor!({"list" => {"limit" => large}}).unwrap());
            let limit = u32::MAX;
            assert_eq!(list, Some(Request::List { pattern: String::new(), cursor: None, limit }));
            let id = FileId::from_bytes([1; 32]);
            let bytes = Value::Bytes(vec![1; 32]);
            let piece = cbor!({"piece" => {"id" => bytes, "index" => large}}).unwrap();
            assert_eq!(request(&piece), Some(Request::Piece { id, index: u32::MAX, super_seed: false }));
            let manifest = cbor!({"manifest" => {"id" => bytes, "first" => large}}).unwrap();
            assert_eq!(request(&manifest), Some(Request::Manifest { id, first: u32::MAX }));
            let wait = cbor!({"known" => large, "timeout_ms" => large}).unwrap();
            assert!(request(&cbor!({"have" => {"id" => bytes, "wait" => wait}}).unwrap()).is_some());
        }
        assert_eq!(request(&cbor!({"list" => {"limit" => -1}}).unwrap()), None);
    }

    #[test]
    fn texts_are_shortened_and_long_lists_refused() {
        let message = "ø".repeat(MAX_TEXT);
        let error = encode_error(None, &cbor!({"code" => "busy", "message" => message}).unwrap());
        let Some(Err(error)) = decode_reply(&error) else { panic!("not an error") };
        assert_eq!(error.message, "ø".repeat(MAX_TEXT / 2));
        let ids = |count| vec![Value::Bytes(vec![1; 32]); count];
        let announced = |count| {
            decode_reply(&encode_reply(None, &cbor!({"announced" => {"unknown" => ids(count)}}).unwrap()))
        };
        assert!(announced(800).is_some() && announced(801).is_none());
        let sizes = |count| {
            let sizes = vec![Value::Null; count];
            decode_reply(&encode_reply(None, &cbor!({"files" => {"sizes" => sizes}}).unwrap()))
        };
        assert!(sizes(512).is_some() && sizes(513).is_none());
        let list = |cursor| {
            let files: [Value; 0] = [];
            let cursor = Value::Bytes(vec![1; cursor]);
            decode_reply(&encode_reply(
                None,
                &cbor!({"list" => {"files" => files, "cursor" => cursor}}).unwrap(),
            ))
        };
        assert!(list(MAX_CURSOR).is_some() && list(MAX_CURSOR + 1).is_none());
    }
}
