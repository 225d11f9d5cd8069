//! The part of a header that a transport reads: the request id.
//!
//! A header is a CBOR map (RFC 8949) with the protocol version `v`, the request id `id`, and one more entry that
//! is the business of [`crate::protocol`].

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cbor;

/// The version of the protocol that this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// How deep the maps and arrays of a header may be nested.
pub const MAX_NESTING: usize = 16;

/// Matches a reply to its request on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The version and id of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The protocol version of the sender.
    pub version: u32,
    /// The request id; none in the reply to a request that had none.
    pub id: Option<RequestId>,
}

#[derive(Deserialize)]
struct Shape {
    v: u32,
    id: Option<RequestId>,
}

/// Reads the envelope of a header; `None` where the bytes are not a CBOR map with `v` and `id`. Where it begins with these
/// two in the usual form, what comes behind is not looked at.
pub fn read(header: &[u8]) -> Option<Envelope> {
    if let Some(mut rest) = header.strip_prefix(b"\xa3\x61v\x01\x62id")
        && let Some(id) = cbor::take_head(&mut rest, cbor::UINT)
    {
        return Some(Envelope { version: PROTOCOL_VERSION, id: Some(RequestId(id)) });
    }
    let shape: Shape = ciborium::de::from_reader_with_recursion_limit(header, MAX_NESTING).ok()?;
    Some(Envelope { version: shape.v, id: shape.id })
}

/// The header that answers a request whose envelope cannot be read, or which breaks a rule of the transport: an
/// error with the code `malformed`.
pub fn malformed_reply(id: Option<RequestId>, message: &str) -> Bytes {
    error_reply(id, "malformed", message)
}

/// The header that takes the place of a reply which goes beyond the limits: an error with the code `too_large`. The
/// asker would wait in vain for no reply at all.
pub fn too_large_reply(reply: &[u8]) -> Bytes {
    let id = read(reply).and_then(|envelope| envelope.id);
    error_reply(id, "too_large", "the reply is larger than the limits of this node allow")
}

fn error_reply(id: Option<RequestId>, code: &str, message: &str) -> Bytes {
    #[derive(Serialize)]
    struct Error<'a> {
        code: &'a str,
        message: &'a str,
    }
    #[derive(Serialize)]
    struct Reply<'a> {
        v: u32,
        id: Option<RequestId>,
        error: Error<'a>,
    }
    let reply = Reply { v: PROTOCOL_VERSION, id, error: Error { code, message } };
    let mut header = Vec::new();
    ciborium::into_writer(&reply, &mut header).expect("plain values are written to memory without fail");
    header.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ciborium::cbor;

    #[test]
    fn the_envelope_is_read_whatever_else_is_in_the_header() {
        let header = cbor!({"x" => [1, {"y" => null}], "id" => 7, "v" => 3}).unwrap();
        let mut bytes = Vec::new();
        ciborium::into_writer(&header, &mut bytes).unwrap();
        assert_eq!(read(&bytes), Some(Envelope { version: 3, id: Some(RequestId(7)) }));
        assert_eq!(read(&malformed_reply(None, "why")), Some(Envelope { version: 1, id: None }));
    }

    #[test]
    fn what_is_no_envelope_is_none() {
        let deep = [vec![0xa1, 0x61, b'x'], vec![0x81; 5000], vec![0]].concat();
        let huge_array = [0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for bytes in [&b""[..], b"\xff", b"\xa0", &deep, &huge_array, b"hello"] {
            assert_eq!(read(bytes), None);
        }
    }
}
