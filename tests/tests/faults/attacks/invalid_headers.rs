//! Headers with invalid names, wrong counts and deep nesting. Each gets an error reply and uses bounded memory.

use enjambre_core::protocol::codec::encode_request;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::Request;
use enjambre_core::{FileId, FileKind, Offer, RequestId, SessionId};
use enjambre_tests::raw::RawConnection;
use enjambre_tests::setup::Wire;

use super::scene::{Scene, attacker_address};

/// The maximum peak memory in MiB.
const MEMORY: u64 = 128;
/// The size of a deeply nested value, slightly below the maximum size of a header.
const MAX_SIZE: usize = 60_000;
const SESSION: SessionId = SessionId([7; 16]);

/// Encodes the header of a request and replaces the only occurrence of some bytes.
fn replace(request: &Request, old: &[u8], new: &[u8]) -> Vec<u8> {
    let header = encode_request(RequestId(7), request);
    let mut occurrences = header.windows(old.len()).enumerate().filter(|(_, part)| *part == old);
    let (at, _) = occurrences.next().expect("the header contains the bytes");
    assert!(occurrences.next().is_none(), "the header contains the bytes twice");
    [&header[..at], new, &header[at + old.len()..]].concat()
}

/// Encodes a CBOR text that may be invalid UTF-8.
fn text(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u8;
    let head = if length < 24 { vec![0x60 + length] } else { vec![0x78, length] };
    [&head, bytes].concat()
}

fn invalid_names() -> Vec<Vec<u8>> {
    let id = FileId::from_bytes([9; 32]);
    let name = "a valid name".parse().unwrap();
    let publish = Request::Publish { session: SESSION, name, id, size: 1, kind: FileKind::File, again: None };
    let long = [b'x'; 256];
    let names: [&[u8]; 16] = [
        b"",
        b".",
        b"..",
        b"/",
        b"../../escaped",
        b"/etc/passwd",
        b"a/b",
        b"a\\b",
        b"C:\\a",
        b"red \x1b[31m",
        b"two\nlines",
        b"nul\0",
        b"\x7f",
        "\u{85}".as_bytes(),
        b"\xff\xfe",
        &long[..255],
    ];
    let with_name = |name: &&[u8]| replace(&publish, &text(b"a valid name"), &text(name));
    let mut headers: Vec<_> = names[..15].iter().map(with_name).collect();
    // Longer than a name may be, and longer than its declared length.
    headers.push(replace(&publish, &text(b"a valid name"), &[&[0x79, 1, 0][..], &long].concat()));
    headers.push(replace(&publish, &text(b"a valid name"), &[&[0x78, 127][..], names[15]].concat()));
    headers
}

fn wrong_counts() -> Vec<Vec<u8>> {
    let id = FileId::from_bytes([9; 32]);
    let (ids, offer) = (vec![id], Offer { id, size: 1, complete: true });
    let requests = [
        (Request::Announce { session: SESSION, offers: vec![offer] }, &b"foffers\x81"[..]),
        (Request::Withdraw { session: SESSION, ids: ids.clone() }, b"cids\x81"),
        (Request::Files { ids }, b"cids\x81"),
        (Request::Cancel { ids: vec![RequestId(1)] }, b"cids\x81"),
        (Request::Providers { id }, b"bid\x58\x20"),
        (Request::Find { query: "abc".to_owned() }, b"equery\x63"),
    ];
    let mut headers = Vec::new();
    for (request, old) in requests {
        let (key, major) = match old {
            [key @ .., 0x58, 0x20] => (key, 0x40),
            [key @ .., head] => (key, head & 0xe0),
            [] => unreachable!("every pattern ends with a CBOR head"),
        };
        let heads: [&[u8]; 6] = [
            &[27, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[27, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[27, 0, 0, 1, 0, 0, 0, 0, 0],
            &[26, 0xff, 0xff, 0xff, 0xff],
            &[26, 0, 0xff, 0xff, 0xff],
            // Indefinite length without an end.
            &[31],
        ];
        for head in heads {
            let head = [&[major | head[0]][..], &head[1..]].concat();
            headers.push(replace(&request, old, &[key, &head].concat()));
        }
    }
    headers
}

/// Returns deeply nested values, as the value of an unknown field of a request and as the whole header.
fn nested_values() -> Vec<Vec<u8>> {
    let deep: [&[u8]; 7] = [b"\x81", b"\xa1\x61x", b"\x9f", b"\xbf\x61x", b"\xc1", b"\xd8\x18", b"\x5f"];
    let mut values: Vec<Vec<u8>> = deep.iter().map(|level| level.repeat(MAX_SIZE / level.len())).collect();
    // Not deep, but with many elements.
    let count = (MAX_SIZE as u16).to_be_bytes();
    values.push([&b"\x99"[..], &count, &vec![0x80; MAX_SIZE]].concat());
    values.push([&b"\xb9"[..], &(MAX_SIZE as u16 / 2).to_be_bytes(), &vec![0xa0; MAX_SIZE]].concat());
    let find = Request::Find { query: "abc".to_owned() };
    let in_request = |value: &Vec<u8>| {
        let unknown = [&b"\xa2\x64bomb"[..], value, b"\x65query\x63abc"].concat();
        replace(&find, b"\xa1\x65query\x63abc", &unknown)
    };
    let requests: Vec<_> = values.iter().map(in_request).collect();
    [requests, values].concat()
}

fn check(wire: Wire) {
    let mut scene = Scene::new(wire, &[]);
    let headers = [invalid_names(), wrong_counts(), nested_values()].concat();
    let targets = scene.targets();
    for (number, target) in targets.iter().enumerate() {
        let mut raw = RawConnection::connect_from(&target.endpoint, attacker_address(number), None).unwrap();
        raw.handshake().unwrap();
        for header in &headers {
            raw.send_header(header).unwrap();
            let error = raw.read_reply().unwrap_err();
            let expected = [ErrorCode::Malformed, ErrorCode::Unsupported, ErrorCode::NotFound];
            assert!(expected.contains(&error.code), "{error} to {:02x?}", &header[..header.len().min(99)]);
            assert!(error.message.len() < 300 && !error.message.contains(char::is_control), "{error:?}");
        }
        raw.send_request(1, &Request::Status).unwrap();
        raw.read_reply().unwrap();
        scene.check_service();
    }
    let listed: Vec<_> = scene.peer.list().iter().map(|file| file["name"].clone()).collect();
    assert_eq!(listed, ["film.bin"]);
    for target in targets {
        target.assert_memory(MEMORY);
    }
}

#[test]
fn invalid_bytes_over_tcp_leave_service_available() {
    check(Wire::Tcp);
}

#[test]
fn invalid_bytes_over_zmq_leave_service_available() {
    check(Wire::Zmq);
}
