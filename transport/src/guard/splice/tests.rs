//! Tests of both loops over in-memory streams.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::Activity;
use enjambre_core::runtime::buffers::BufferPool;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, duplex};
use tokio::sync::mpsc;

use super::{BUFFER, Inbound, MAX_PONGS, Outbound, Payloads, inbound, outbound};
use crate::guard::disconnect::Disconnect;
use crate::guard::ending::HangUp;
use crate::guard::frame::{Direction, command_frame};
use crate::guard::gate::RequestGate;

struct Gate(RequestGate);

impl HangUp for ReadHalf<&mut DuplexStream> {
    async fn hung_up(&self) {
        std::future::pending::<()>().await;
    }
}

impl Inbound for Gate {
    fn gate(&self) -> Option<&RequestGate> {
        Some(&self.0)
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const REQUESTS: Direction = Direction::Requests { header: 1024, payload: 1024, frames: 4 };

async fn read(from: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// Runs both loops until one ends, and returns its result.
async fn run(public: DuplexStream, inner: DuplexStream, gate: &Gate) -> Result<(), Disconnect> {
    run_with(public, inner, REQUESTS, gate, &()).await
}

async fn run_with(
    mut public: DuplexStream,
    mut inner: DuplexStream,
    direction: Direction,
    to_crate: &impl Inbound,
    to_remote: &impl Outbound,
) -> Result<(), Disconnect> {
    let (mut from_public, mut to_public) = tokio::io::split(&mut public);
    let (mut from_inner, mut to_inner) = tokio::io::split(&mut inner);
    let activity = Activity::default();
    let (pong, mut pongs) = mpsc::channel(MAX_PONGS);
    tokio::select! {
        end = inbound(&mut from_public, &mut to_inner, direction, to_crate, &activity, &pong, HOUR) => end,
        end = outbound(&mut from_inner, &mut to_public, to_remote, &activity, &mut pongs, HOUR) => end,
    }
}

#[tokio::test(start_paused = true)]
async fn request_beyond_the_gate_waits_alone() {
    let gate = Gate(RequestGate::new(2, 1024));
    let (mut remote, public) = duplex(4096);
    let (inner, mut socket) = duplex(4096);
    let test = async {
        // All in one read.
        remote.write_all(&[[0, 1, b'a'], [0, 1, b'b'], [0, 1, b'c']].concat()).await.unwrap();
        assert_eq!(read(&mut socket, 6).await, [0, 1, b'a', 0, 1, b'b']);
        assert!(tokio::time::timeout(HOUR, read(&mut socket, 1)).await.is_err());
        assert_eq!(gate.0.in_flight(), 2);
        gate.0.leave(1);
        assert_eq!(read(&mut socket, 3).await, [0, 1, b'c']);
    };
    tokio::select! {
        end = run(public, inner, &gate) => panic!("{end:?}"),
        () = test => {}
    }
}

#[tokio::test(start_paused = true)]
async fn pong_is_sent_between_two_replies() {
    let gate = Gate(RequestGate::new(2, 1024));
    let (mut remote, public) = duplex(4096);
    let (inner, mut socket) = duplex(4096);
    let pong = command_frame(b"\x04PONGx");
    let test = async {
        // Half of a reply, a PING, the other half, and the start of the next reply.
        socket.write_all(&[0, 4, 1, 2]).await.unwrap();
        assert_eq!(read(&mut remote, 4).await, [0, 4, 1, 2]);
        remote.write_all(&command_frame(b"\x04PING\0\0x")).await.unwrap();
        remote.write_all(&[0, 1, b'a']).await.unwrap();
        assert_eq!(read(&mut socket, 3).await, [0, 1, b'a'], "the command is not forwarded");
        socket.write_all(&[3, 4, 0, 2, 9]).await.unwrap();
        let expected = [&[3, 4][..], &pong, &[0, 2, 9]].concat();
        assert_eq!(read(&mut remote, expected.len()).await, expected);
    };
    tokio::select! {
        end = run(public, inner, &gate) => panic!("{end:?}"),
        () = test => {}
    }
}

struct Replies(Mutex<VecDeque<Bytes>>);

impl Outbound for Replies {
    fn payload(&self, messages: usize) -> Option<Bytes> {
        Some(std::mem::take(self.0.lock().get_mut(messages)?)).filter(|payload| !payload.is_empty())
    }

    fn sent(&self, messages: usize) {
        self.0.lock().drain(..messages);
    }
}

#[tokio::test(start_paused = true)]
async fn payload_replaces_its_empty_frame() {
    let gate = Gate(RequestGate::new(2, 1024));
    let payloads = [&b"some"[..], b"", &[7; 600_000], b""].map(Bytes::from_static);
    let replies = Replies(Mutex::new(payloads.into()));
    let (mut remote, public) = duplex(4096);
    let (inner, mut socket) = duplex(4096);
    let test = async {
        // The second reply has no payload, the fourth an empty one.
        let sent = [&[1, 1, b'a', 0, 0][..], &[0, 1, b'b'], &[1, 0, 1, 1, b'c', 0, 0], &[1, 1, b'd', 0, 0]];
        socket.write_all(&sent.concat()).await.unwrap();
        let expected: [&[u8]; 5] = [
            &[1, 1, b'a', 0, 4, b's', b'o', b'm', b'e'],
            &[0, 1, b'b'],
            &[1, 0, 1, 1, b'c', 2, 0, 0, 0, 0, 0, 9, 0x27, 0xc0],
            &[7; 600_000],
            &[1, 1, b'd', 0, 0],
        ];
        let expected = expected.concat();
        assert!(read(&mut remote, expected.len()).await == expected);
    };
    tokio::select! {
        end = run_with(public, inner, REQUESTS, &gate, &replies) => panic!("{end:?}"),
        () = test => {}
    }
    assert!(replies.0.lock().is_empty());
}

/// A frame with the long form of the header, which is valid for short bodies, too.
fn frame(more: bool, body: &[u8]) -> Vec<u8> {
    [&[2 | u8::from(more)][..], &(body.len() as u64).to_be_bytes(), body].concat()
}

#[tokio::test(start_paused = true)]
async fn reply_is_released_and_ping_answered_between_payloads() {
    let gate = Gate(RequestGate::new(2, 1024));
    let payload = Bytes::from_static(&[7; 60_000]);
    let replies = Replies(Mutex::new([Bytes::new(), payload.clone(), payload.clone()].into()));
    let (mut remote, public) = duplex(4096);
    let (inner, mut socket) = duplex(4096);
    let test = async {
        // All in one read.
        socket.write_all(&[0, 1, b'a', 1, 1, b'b', 0, 0, 1, 1, b'c', 0, 0]).await.unwrap();
        let expected = [&[0, 1, b'a', 1, 1, b'b'], &frame(false, &payload)[..]].concat();
        let first = read(&mut remote, 6).await;
        remote.write_all(&command_frame(b"\x04PING\0\0x").repeat(3)).await.unwrap();
        assert!([first, read(&mut remote, expected.len() - 6).await].concat() == expected);
        let pong = command_frame(b"\x04PONGx");
        assert_eq!(read(&mut remote, pong.len()).await, pong);
        assert_eq!(replies.0.lock().len(), 1, "the last reply is not sent yet");
        let expected = [&[1, 1, b'c'], &frame(false, &payload)[..], &pong, &pong].concat();
        assert!(read(&mut remote, expected.len()).await == expected);
    };
    tokio::select! {
        end = run_with(public, inner, REQUESTS, &gate, &replies) => panic!("{end:?}"),
        () = test => {}
    }
}

/// Sends replies over streams with buffers of `chunk` bytes.
async fn transfer_replies(chunk: usize, payloads: &[usize]) {
    let payload = |(at, &length): (usize, &usize)| Bytes::from(vec![at as u8; length]);
    let payloads: Vec<Bytes> = payloads.iter().enumerate().map(payload).collect();
    let reply = |(at, payload): (usize, &Bytes)| {
        let header = frame(!payload.is_empty(), &vec![b'h'; at]);
        [&header[..], if payload.is_empty() { &[] } else { &[0, 0] }].concat()
    };
    let stream: Vec<u8> = payloads.iter().enumerate().flat_map(reply).collect();
    let replies = Replies(Mutex::new(payloads.clone().into()));
    let (to, mut received_payloads) = mpsc::channel(1);
    let receiver = Receiver(Payloads { pool: BufferPool::new(1 << 20), to });
    let direction = Direction::Replies { header: 1024, payload: 1 << 20, frames: 4 };

    let ((mut socket, mut from_socket), (mut here, mut there)) = (duplex(chunk), duplex(chunk));
    let (mut to_crate, mut crate_end) = duplex(chunk);
    let (mut from_here, _) = tokio::io::split(&mut there);
    let activity = Activity::default();
    let (pong, mut pongs) = mpsc::channel(MAX_PONGS);
    let transfer = async {
        tokio::join!(socket.write_all(&stream), read(&mut crate_end, stream.len()), async {
            for expected in payloads.iter().filter(|payload| !payload.is_empty()) {
                assert!(received_payloads.recv().await.unwrap() == expected, "{chunk}");
            }
        })
    };
    tokio::select! {
        end = outbound(&mut from_socket, &mut here, &replies, &activity, &mut pongs, HOUR) => panic!("{end:?}"),
        end = inbound(&mut from_here, &mut to_crate, direction, &receiver, &activity, &pong, HOUR) => {
            panic!("{end:?}")
        }
        (_, received, ()) = transfer => assert!(received == stream, "{chunk}"),
    }
    assert!(received_payloads.try_recv().is_err() && replies.0.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn chunk_size_does_not_change_replies_and_payloads() {
    for chunk in 1..40 {
        transfer_replies(chunk, &[3, 0, 255, 1, 0, 0, 256, 70, 2]).await;
    }
    for chunk in [1000, BUFFER - 1, BUFFER, 1 << 20] {
        transfer_replies(chunk, &[3, 0, BUFFER, 40_000, 0, 600_000, 1, 32_000, 5]).await;
    }
}

struct Receiver(Payloads);

impl Inbound for Receiver {
    fn gate(&self) -> Option<&RequestGate> {
        None
    }

    fn payloads(&self) -> Option<&Payloads> {
        Some(&self.0)
    }

    fn passed(&self, _messages: u64) {}
}

#[tokio::test(start_paused = true)]
async fn payloads_bypass_the_crate_one_at_a_time() {
    let (to, mut payloads) = mpsc::channel(1);
    let receiver = Receiver(Payloads { pool: BufferPool::new(0), to });
    let direction = Direction::Replies { header: 1024, payload: 1 << 20, frames: 4 };
    let (mut remote, public) = duplex(4096);
    let (inner, mut socket) = duplex(4096);
    let reply = |name, byte, length: u64| {
        [&[1, 1, name, 2][..], &length.to_be_bytes(), &vec![byte; length as usize]].concat()
    };
    let test = async {
        // A PING between the frames of a reply with an empty payload.
        remote.write_all(&[1, 1, b'a']).await.unwrap();
        remote.write_all(&command_frame(b"\x04PING\0\0x")).await.unwrap();
        remote.write_all(&[0, 0]).await.unwrap();
        remote.write_all(&reply(b'b', 7, 100_000)).await.unwrap();
        assert_eq!(read(&mut socket, 10).await, [1, 1, b'a', 0, 0, 1, 1, b'b', 0, 0]);
        // The loop has read this payload and waits for the receiver.
        let held = tokio::time::timeout(HOUR, remote.write_all(&reply(b'c', 8, 100_000))).await;
        assert!(held.is_err());
        assert_eq!(payloads.recv().await.unwrap(), b""[..]);
        assert_eq!(payloads.recv().await.unwrap(), vec![7; 100_000]);
    };
    tokio::select! {
        end = run_with(public, inner, direction, &receiver, &()) => panic!("{end:?}"),
        () = test => {}
    }
}

#[tokio::test(start_paused = true)]
async fn remote_that_reads_nothing_gets_a_write_timeout() {
    let gate = Gate(RequestGate::new(2, 1024));
    let (_remote, public) = duplex(16);
    let (inner, mut socket) = duplex(4096);
    socket.write_all(&[0, 100]).await.unwrap();
    socket.write_all(&[7; 100]).await.unwrap();
    let begin = tokio::time::Instant::now();
    assert!(matches!(run(public, inner, &gate).await, Err(Disconnect::WriteTimeout)));
    assert_eq!(begin.elapsed(), HOUR);
}
