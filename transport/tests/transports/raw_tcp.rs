//! The wire format of `tcp://`.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::transport::envelope;
use enjambre_transport::settings::TransportSettings;
use enjambre_transport::{GuardedTransport, Shared};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::fixture::{LARGE, reply, request};
use crate::raw_protocol::{RawProtocol, Side};

const PREFACE: [u8; 8] = *b"\x8aENJTCP\x01";

fn lengths(header: u32, payload: u32) -> Vec<u8> {
    [header.to_be_bytes(), payload.to_be_bytes()].concat()
}

fn frame(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let lengths = lengths(header.len().try_into().unwrap(), payload.len().try_into().unwrap());
    [&lengths, header, payload].concat()
}

/// `tcp://`.
pub(crate) struct RawTcp;

impl RawProtocol for RawTcp {
    fn transport(settings: TransportSettings) -> Arc<dyn GuardedTransport> {
        Shared::new(settings).unwrap().tcp()
    }

    fn greeting(_: Side) -> Vec<u8> {
        PREFACE.to_vec()
    }

    async fn take_greeting(stream: &mut TcpStream) -> io::Result<()> {
        let mut theirs = [0; PREFACE.len()];
        stream.read_exact(&mut theirs).await?;
        assert_eq!(theirs, PREFACE);
        Ok(())
    }

    fn request(id: u64) -> Vec<u8> {
        frame(&request(id), b"")
    }

    async fn reply(stream: &mut TcpStream) -> (Bytes, Bytes) {
        let (header, payload) = (stream.read_u32().await.unwrap(), stream.read_u32().await.unwrap());
        let mut parts = [vec![0; header as usize], vec![0; payload as usize]];
        for part in &mut parts {
            stream.read_exact(part).await.unwrap();
        }
        let [header, payload] = parts;
        (header.into(), payload.into())
    }

    fn half_greetings() -> Vec<usize> {
        (0..PREFACE.len()).collect()
    }

    fn false_greetings() -> Vec<Vec<u8>> {
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\xff", b"\x16\x03\x01\x02", b"\0", b"\x8aENJTCP\x02", b"\x8aENK"]
            .map(<[u8]>::to_vec)
            .into()
    }

    fn broken_requests() -> Vec<Vec<u8>> {
        let (header, payload) = (64 * 1024, 4 << 20);
        [
            (u32::MAX, u32::MAX),
            (u32::MAX, 0),
            (1 << 31, 0),
            (header + 1, 0),
            (10, payload + 1),
            (10, u32::MAX),
            (0, 1 << 31),
        ]
        .map(|(header, payload)| lengths(header, payload))
        .into()
    }

    fn malformed_requests() -> Vec<(Vec<u8>, Option<u64>)> {
        // No header, no CBOR, no id, a payload, a large payload, a garbage header of the maximum size.
        let payload = vec![1; LARGE];
        vec![
            (frame(b"", b""), None),
            (frame(b"garbage", b""), None),
            (frame(&envelope::malformed_reply(None, ""), b""), None),
            (frame(&request(8), b"payload"), Some(8)),
            (frame(&request(9), &payload), Some(9)),
            (frame(&[0xff; 64 * 1024], b""), None),
            (frame(b"", &payload), None),
        ]
    }

    fn begun_requests() -> Vec<Vec<u8>> {
        vec![lengths(100, 0), vec![0], Self::request(1)[..20].to_vec(), lengths(0, 100)]
    }

    fn broken_replies() -> Vec<Vec<u8>> {
        vec![
            lengths(u32::MAX, 0),
            lengths(64 * 1024 + 1, 0),
            [lengths(10, (4 << 20) + 1), vec![0; 10]].concat(),
            // Replies without requests, without and with payloads.
            frame(&reply(77), b"").repeat(5000),
            frame(&reply(77), &[7; 10_000]).repeat(2000),
        ]
    }

    fn begun_reply() -> Vec<u8> {
        let declared = lengths(reply(1).len().try_into().unwrap(), 1 << 20);
        [&declared, &reply(1)[..], &[7; 1000]].concat()
    }
}
