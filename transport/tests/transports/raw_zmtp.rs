//! The wire format of `zmq://`: ZMTP 3.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::transport::envelope;
use enjambre_transport::settings::TransportSettings;
use enjambre_transport::{GuardedTransport, Shared};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{LARGE, reply, request};
use crate::raw_protocol::{RawProtocol, Side};

/// The flag of a frame that is not the last of its message.
pub(crate) const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The greeting of 64 bytes, with version 3.1 like libzmq.
pub(crate) fn greeting(major: u8, mechanism: &[u8]) -> Vec<u8> {
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, major, 1);
    greeting[12..12 + mechanism.len()].copy_from_slice(mechanism);
    greeting
}

/// A READY command.
pub(crate) fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
        body.push(u8::try_from(name.len()).unwrap());
        body.extend(name.as_bytes());
        body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(value);
    }
    command(&body)
}

/// The header of a long frame.
pub(crate) fn long_header(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | LONG][..], &length.to_be_bytes()].concat()
}

/// A frame.
pub(crate) fn framed(flags: u8, body: &[u8]) -> Vec<u8> {
    match u8::try_from(body.len()) {
        Ok(length) => [&[flags, length][..], body].concat(),
        Err(_) => [&long_header(flags, body.len() as u64), body].concat(),
    }
}

/// A command with this body.
pub(crate) fn command(body: &[u8]) -> Vec<u8> {
    framed(COMMAND, body)
}

/// The next message or command of a connection.
#[derive(Debug)]
pub(crate) enum Next {
    /// The frames of a message.
    Message(Vec<Bytes>),
    /// The body of a command.
    Command(Vec<u8>),
}

/// A connection after the handshake.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
}

impl Raw {
    pub(crate) async fn connect(address: &str, socket_type: &str, identity: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        // In parts, like libzmq.
        let greeting = greeting(3, b"NULL");
        stream.write_all(&greeting[..10]).await.unwrap();
        stream.write_all(&greeting[10..]).await.unwrap();
        stream.write_all(&ready(socket_type, identity)).await.unwrap();
        RawZmtp::take_greeting(&mut stream).await.unwrap();
        Self { stream }
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn frame(&mut self, flags: u8, body: &[u8]) {
        self.try_frame(flags, body).await.unwrap();
    }

    pub(crate) async fn try_frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        self.stream.write_all(&framed(flags, body)).await
    }

    pub(crate) async fn next(&mut self) -> Next {
        next(&mut self.stream).await.unwrap()
    }

    pub(crate) async fn message(&mut self) -> Vec<Bytes> {
        match self.next().await {
            Next::Message(frames) => frames,
            Next::Command(body) => panic!("a command: {body:?}"),
        }
    }

    pub(crate) async fn command(&mut self) -> Vec<u8> {
        match self.next().await {
            Next::Command(body) => body,
            Next::Message(frames) => panic!("a message: {frames:?}"),
        }
    }
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let flags = stream.read_u8().await?;
    let length =
        if flags & LONG == 0 { u64::from(stream.read_u8().await?) } else { stream.read_u64().await? };
    let mut body = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut body).await?;
    Ok((flags, body))
}

async fn next(stream: &mut TcpStream) -> io::Result<Next> {
    let mut frames = Vec::new();
    loop {
        let (flags, body) = read_frame(stream).await?;
        if flags & COMMAND != 0 {
            assert!(frames.is_empty(), "a command within a message");
            return Ok(Next::Command(body));
        }
        frames.push(Bytes::from(body));
        if flags & MORE == 0 {
            return Ok(Next::Message(frames));
        }
    }
}

/// A message of these frames.
pub(crate) fn message(frames: &[&[u8]]) -> Vec<u8> {
    let last = frames.len() - 1;
    let framed = |(at, frame): (usize, &&[u8])| framed(if at < last { MORE } else { 0 }, frame);
    frames.iter().enumerate().flat_map(framed).collect()
}

/// `zmq://`.
pub(crate) struct RawZmtp;

impl RawProtocol for RawZmtp {
    fn transport(settings: TransportSettings) -> Arc<dyn GuardedTransport> {
        Shared::new(settings).unwrap().zmq()
    }

    fn greeting(side: Side) -> Vec<u8> {
        let socket_type = if side == Side::Client { "DEALER" } else { "ROUTER" };
        [greeting(3, b"NULL"), ready(socket_type, b"")].concat()
    }

    async fn take_greeting(stream: &mut TcpStream) -> io::Result<()> {
        let mut theirs = [0; 64];
        stream.read_exact(&mut theirs).await?;
        assert_eq!(theirs[..12], [0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0]);
        let ready = next(stream).await?;
        assert!(matches!(ready, Next::Command(body) if body.starts_with(b"\x05READY")));
        Ok(())
    }

    fn request(id: u64) -> Vec<u8> {
        framed(0, &request(id))
    }

    async fn reply(stream: &mut TcpStream) -> (Bytes, Bytes) {
        let Next::Message(frames) = next(stream).await.unwrap() else { panic!("a command") };
        let mut frames = frames.into_iter().skip_while(Bytes::is_empty);
        let reply = (frames.next().expect("a header"), frames.next().unwrap_or_default());
        assert_eq!(frames.next(), None);
        reply
    }

    fn half_greetings() -> Vec<usize> {
        vec![0, 1, 10, 11, 63, 64, 66, 70, Self::greeting(Side::Client).len() - 1]
    }

    fn false_greetings() -> Vec<Vec<u8>> {
        let null = greeting(3, b"NULL");
        vec![
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0; 64],
            [&[0xff][..], &[0; 63]].concat(),
            greeting(2, b"NULL"),
            greeting(3, b"PLAIN"),
            greeting(3, b"CURVE"),
            greeting(3, b"NULLE"),
            [null.clone(), ready("PUB", b"")].concat(),
            [null.clone(), command(b"\x05READY")].concat(),
            [null.clone(), command(b"\x05READY\xff")].concat(),
            [null.clone(), b"\x00\x01x".to_vec()].concat(),
            [null, command(&[&b"\x05READY"[..], &vec![0; 8000]].concat())].concat(),
        ]
    }

    fn broken_requests() -> Vec<Vec<u8>> {
        let mut broken = vec![
            vec![0x08, 0],
            vec![0xff, 0xff],
            vec![0x05, 5, 4, b'P', b'I', b'N', b'G'],
            long_header(COMMAND, 5000),
        ];
        for length in [1 << 40, 1 << 62, u64::MAX, 64 * 1024 + 1] {
            broken.extend([0, MORE].map(|flags| long_header(flags, length)));
        }
        // As a payload after a valid header.
        for length in [1 << 40, 1 << 62, u64::MAX] {
            broken.push([framed(MORE, &request(1)), long_header(0, length)].concat());
        }
        broken
    }

    fn malformed_requests() -> Vec<(Vec<u8>, Option<u64>)> {
        // No header, no CBOR, no id, a payload, a large payload and further frames; with and without a delimiter.
        let payload = vec![1; LARGE];
        vec![
            (message(&[b""]), None),
            (message(&[b"", b"garbage"]), None),
            (message(&[b"garbage"]), None),
            (message(&[b"", &envelope::malformed_reply(None, "")]), None),
            (message(&[&request(8), b"payload"]), Some(8)),
            (message(&[b"", &request(9), &payload, b"", b"x"]), Some(9)),
        ]
    }

    fn begun_requests() -> Vec<Vec<u8>> {
        // Also a delimiter alone, and a first frame alone.
        vec![vec![0, 100, 1], vec![MORE, 0], vec![MORE, 1, b'x']]
    }

    fn broken_replies() -> Vec<Vec<u8>> {
        vec![
            long_header(0, 1 << 40),
            long_header(0, u64::MAX),
            [framed(MORE, &reply(1)), long_header(0, (4 << 20) + 1)].concat(),
            framed(MORE, b"").repeat(9),
            b"\xff".to_vec(),
            // Replies without requests, without and with payloads.
            framed(0, &reply(77)).repeat(5000),
            message(&[&reply(77), &[7; 10_000]]).repeat(2000),
        ]
    }

    fn begun_reply() -> Vec<u8> {
        [framed(MORE, &reply(1)), long_header(0, 1 << 20), vec![7; 1000]].concat()
    }
}
