//! Headers with names that lead elsewhere, counts that are not there, and nesting without end: each is answered with an
//! error, and costs nothing.

use enjambre_core::model::id::FileId;
use enjambre_core::model::record::{FileKind, Offer};
use enjambre_core::protocol::codec::encode_request;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{Request, SessionId};
use enjambre_core::transport::envelope::RequestId;
use enjambre_tests::node::Wire;
use enjambre_tests::raw::Raw;

use crate::scene::{Scene, stranger};

/// In MiB.
const MEMORY: u64 = 128;
/// As many bytes of a header as may be nonsense.
const MOST: usize = 60_000;
const SESSION: SessionId = SessionId([7; 16]);

/// The header of the request with other bytes in the place of these, which are in it once.
fn changed(request: &Request, old: &[u8], new: &[u8]) -> Vec<u8> {
    let header = encode_request(RequestId(7), request);
    let mut places = header.windows(old.len()).enumerate().filter(|(_, part)| *part == old);
    let (at, _) = places.next().expect("they are in it");
    assert!(places.next().is_none(), "they are in it once");
    [&header[..at], new, &header[at + old.len()..]].concat()
}

/// A CBOR text of these bytes.
fn text(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u8;
    let head = if length < 24 { vec![0x60 + length] } else { vec![0x78, length] };
    [&head, bytes].concat()
}

fn names() -> Vec<Vec<u8>> {
    let id = FileId::from_bytes([9; 32]);
    let name = "a good name".parse().unwrap();
    let publish = Request::Publish { session: SESSION, name, id, size: 1, kind: FileKind::File };
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
    let change = |name: &&[u8]| changed(&publish, &text(b"a good name"), &text(name));
    let mut changed: Vec<_> = names[..15].iter().map(change).collect();
    // Longer than a name, and twice as long as it says.
    changed.push(self::changed(&publish, &text(b"a good name"), &[&[0x79, 1, 0][..], &long].concat()));
    changed.push(self::changed(&publish, &text(b"a good name"), &[&[0x78, 127][..], names[15]].concat()));
    changed
}

fn counts() -> Vec<Vec<u8>> {
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
            [] => unreachable!("there is a head"),
        };
        let heads: [&[u8]; 6] = [
            &[27, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[27, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[27, 0, 0, 1, 0, 0, 0, 0, 0],
            &[26, 0xff, 0xff, 0xff, 0xff],
            &[26, 0, 0xff, 0xff, 0xff],
            // Of a length that is said at the end, which does not come.
            &[31],
        ];
        for head in heads {
            let head = [&[major | head[0]][..], &head[1..]].concat();
            headers.push(changed(&request, old, &[key, &head].concat()));
        }
    }
    headers
}

/// Within a request, as the value of a field that nobody knows, and instead of the whole.
fn bombs() -> Vec<Vec<u8>> {
    let deep: [&[u8]; 7] = [b"\x81", b"\xa1\x61x", b"\x9f", b"\xbf\x61x", b"\xc1", b"\xd8\x18", b"\x5f"];
    let mut bombs: Vec<Vec<u8>> = deep.iter().map(|level| level.repeat(MOST / level.len())).collect();
    // It does not go deep, but there is much of it.
    let count = (MOST as u16).to_be_bytes();
    bombs.push([&b"\x99"[..], &count, &vec![0x80; MOST]].concat());
    bombs.push([&b"\xb9"[..], &(MOST as u16 / 2).to_be_bytes(), &vec![0xa0; MOST]].concat());
    let find = Request::Find { query: "abc".to_owned() };
    let inside = |bomb: &Vec<u8>| {
        let unknown = [&b"\xa2\x64bomb"[..], bomb, b"\x65query\x63abc"].concat();
        changed(&find, b"\xa1\x65query\x63abc", &unknown)
    };
    let within: Vec<_> = bombs.iter().map(inside).collect();
    [within, bombs].concat()
}

fn nonsense(wire: Wire) {
    let mut scene = Scene::new(wire, &[]);
    let headers = [names(), counts(), bombs()].concat();
    let targets = scene.targets();
    for (number, target) in targets.iter().enumerate() {
        let mut raw = Raw::connect_from(&target.endpoint, stranger(number), None).unwrap();
        raw.greet().unwrap();
        for header in &headers {
            raw.say(header).unwrap();
            let error = raw.reply().unwrap_err();
            let understood = [ErrorCode::Malformed, ErrorCode::Unsupported, ErrorCode::NotFound];
            assert!(understood.contains(&error.code), "{error} to {:02x?}", &header[..header.len().min(99)]);
            assert!(error.message.len() < 300 && !error.message.contains(char::is_control), "{error:?}");
        }
        raw.ask(1, &Request::Status).unwrap();
        raw.reply().unwrap();
        scene.serves_others();
    }
    let listed: Vec<_> = scene.peer.list().iter().map(|file| file["name"].clone()).collect();
    assert_eq!(listed, ["film.bin"]);
    for target in targets {
        target.assert_memory(MEMORY);
    }
}

#[test]
fn nonsense_over_tcp() {
    nonsense(Wire::Tcp);
}

#[test]
fn nonsense_over_zmq() {
    nonsense(Wire::Zmq);
}
