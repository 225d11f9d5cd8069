//! Fuzz targets: ZMTP as strangers speak it, against a second reading of RFC 23 that has the whole of it before it begins.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::buffers::BufferPool;
use enjambre_core::transport::calls::Activity;
use futures::FutureExt;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use super::cutoff::CutOff;
use super::frame::{Direction, MAX_COMMAND, command_frame};
use super::gate::RequestGate;
use super::handshake::{self, Introduction, shake_hands};
use super::splice::{self, Inbound, Payloads};
use crate::fuzz::Remote;

const HEADER: u64 = 40;
const PAYLOAD: u64 = 700;
const FRAMES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(3600);
/// How many bytes come at once, where it is not all of them.
const CHUNKS: [usize; 3] = [1, 7, usize::MAX];

/// A greeting and READY. Whatever comes, the end of it ends the handshake, however it is cut.
pub(crate) fn greeting(data: &[u8]) {
    let us = Introduction { socket_type: "ROUTER", identity: b"" };
    let greeted = CHUNKS.map(|chunk| {
        let mut remote = Remote::new(data, chunk);
        let greeted = shake_hands(&mut remote, us, &["DEALER", "REQ"]).now_or_never();
        (greeted.expect("its end is the end").map_err(|reason| reason.to_string()), remote.says)
    });
    assert_eq!(greeted[0], greeted[1]);
    assert_eq!(greeted[0], greeted[2]);
    let [(greeted, rest), ..] = greeted;
    if greeted.is_ok() {
        let said = &data[..data.len() - rest.len()];
        assert_eq!((said[0], said[9] & 1, &said[12..16]), (0xff, 1, &b"NULL"[..]));
        assert!(said.len() <= 64 + 9 + MAX_COMMAND);
        assert!(
            [&b"DEALER"[..], b"REQ"].iter().any(|kind| said.windows(kind.len()).any(|part| part == *kind))
        );
    }
}

/// What comes in from a client.
pub(crate) fn requests(data: &[u8]) {
    carried(Direction::Requests { header: HEADER, payload: PAYLOAD, frames: FRAMES }, data);
}

/// What comes in from a server.
pub(crate) fn replies(data: &[u8]) {
    carried(Direction::Replies { header: HEADER, payload: PAYLOAD, frames: FRAMES }, data);
}

/// What becomes of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// What reaches the crate.
    inner: Vec<u8>,
    payloads: Vec<Vec<u8>>,
    messages: u64,
    /// The answers to commands, or the first of them.
    pongs: Vec<Vec<u8>>,
    /// Whether it was good to its end, and ended between two messages.
    whole: bool,
    /// Whether it was refused before its end.
    refused: bool,
}

fn carried(direction: Direction, data: &[u8]) {
    let expected = expected(direction, data);
    for chunk in CHUNKS {
        let outcome = actual(direction, data, chunk);
        if expected.refused {
            // How much of the good beginning has left by then depends on how it is cut.
            assert!(outcome.refused && expected.inner.starts_with(&outcome.inner), "{chunk}");
            assert!(expected.payloads.starts_with(&outcome.payloads), "{chunk}");
            assert!(outcome.messages <= expected.messages, "{chunk}");
        } else {
            assert_eq!(outcome, expected, "{chunk}");
        }
        is_harmless(direction, &outcome);
    }
}

/// The crate sees whole headers of frames, none of more than a header may have, and no commands.
fn is_harmless(direction: Direction, outcome: &Outcome) {
    let mut rest = &outcome.inner[..];
    while let Some(frame) = frame(&mut rest) {
        assert!(!frame.command && frame.declared <= HEADER);
        let _ = body(&mut rest, frame.declared);
        let replies = matches!(direction, Direction::Replies { .. });
        assert!(replies || outcome.payloads.is_empty());
    }
    assert!(outcome.payloads.iter().all(|payload| payload.len() as u64 <= PAYLOAD));
}

/// Runs the real thing.
fn actual(direction: Direction, data: &[u8], chunk: usize) -> Outcome {
    struct Crate {
        gate: Option<RequestGate>,
        payloads: Payloads,
        messages: AtomicU64,
    }
    impl Inbound for Crate {
        fn gate(&self) -> Option<&RequestGate> {
            self.gate.as_ref()
        }

        fn payloads(&self) -> Option<&Payloads> {
            self.gate.is_none().then_some(&self.payloads)
        }

        fn passed(&self, messages: u64) {
            self.messages.fetch_add(messages, Ordering::Relaxed);
        }
    }
    // Room for all that there can be in these bytes.
    let room = data.len() + 1;
    let (to, mut taken) = mpsc::channel(room);
    let (pong, mut pongs) = mpsc::channel(room);
    let requests = matches!(direction, Direction::Requests { .. });
    let gate = requests.then(|| RequestGate::new(room, room * HEADER as usize));
    let receiver =
        Crate { gate, payloads: Payloads { pool: BufferPool::new(0), to }, messages: AtomicU64::new(0) };
    let (mut from, mut inner) = (Remote::new(data, chunk), Remote::new(b"", 0));
    let activity = Activity::default();
    let inbound = splice::inbound(&mut from, &mut inner, direction, &receiver, &activity, &pong, PATIENCE);
    let ended = at_once(inbound);
    Outcome {
        payloads: drain(&mut taken).iter().map(|payload: &Bytes| payload.to_vec()).collect(),
        pongs: drain(&mut pongs),
        messages: receiver.messages.into_inner(),
        inner: inner.hears,
        whole: ended.is_ok(),
        refused: matches!(ended, Err(CutOff::Protocol(_) | CutOff::Limit { .. })),
    }
}

/// There is nothing to wait for.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        work.now_or_never().expect("all that it waits for is there")
    })
}

fn drain<T>(from: &mut mpsc::Receiver<T>) -> Vec<T> {
    std::iter::from_fn(|| from.try_recv().ok()).collect()
}

struct Frame<'a> {
    head: &'a [u8],
    command: bool,
    more: bool,
    odd: bool,
    declared: u64,
}

/// Takes the head of a frame off the front; none where it is not there in whole.
fn frame<'a>(rest: &mut &'a [u8]) -> Option<Frame<'a>> {
    let flags = *rest.first()?;
    let odd = flags & 0b1111_1000 != 0;
    let length = if odd {
        1
    } else if flags & 2 == 0 {
        2
    } else {
        9
    };
    let (head, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    let declared = head[1..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some(Frame { head, command: flags & 4 != 0, more: flags & 1 != 0, odd, declared })
}

/// Takes as much off the front as was declared and is there; whether that is all.
fn body<'a>(rest: &mut &'a [u8], declared: u64) -> (&'a [u8], bool) {
    let here = usize::try_from(declared).unwrap_or(usize::MAX).min(rest.len());
    let (body, behind) = rest.split_at(here);
    *rest = behind;
    (body, here as u64 == declared)
}

/// What is to become of the stream.
fn expected(direction: Direction, data: &[u8]) -> Outcome {
    let requests = matches!(direction, Direction::Requests { .. });
    let mut outcome = Outcome::default();
    let refused = |outcome| Outcome { refused: true, ..outcome };
    let mut rest = data;
    // Of the message that has begun.
    let (mut frames, mut total, mut delimited) = (0, 0_u64, false);
    loop {
        let Some(Frame { head, command, more, odd, declared }) = frame(&mut rest) else {
            outcome.whole = rest.is_empty() && frames == 0;
            return outcome;
        };
        if odd || command && (more || declared > MAX_COMMAND as u64) {
            return refused(outcome);
        }
        if command {
            let (body, whole) = body(&mut rest, declared);
            if !whole {
                return outcome;
            }
            outcome.pongs.extend(handshake::answer(body));
            continue;
        }
        frames += 1;
        total = total.saturating_add(declared);
        let is_header = frames == 1 || requests && frames == 2 && delimited;
        let most = if is_header { HEADER } else { PAYLOAD };
        if frames > FRAMES || total > HEADER + PAYLOAD || declared > most {
            return refused(outcome);
        }
        delimited = frames == 1 && more && declared == 0;
        // What is no header leaves an empty frame behind.
        let empty = [head[0] & 1, 0];
        outcome.inner.extend_from_slice(if is_header { head } else { &empty });
        let (body, whole) = body(&mut rest, declared);
        if is_header {
            outcome.inner.extend_from_slice(body);
        }
        if !whole {
            return outcome;
        }
        if !is_header && !requests && frames == 2 {
            outcome.payloads.push(body.to_vec());
        }
        if !more {
            outcome.messages += 1;
            (frames, total, delimited) = (0, 0, false);
        }
    }
}

#[test]
fn a_stream_with_everything_in_it_is_carried_as_it_should_be() {
    let ping = command_frame(b"\x04PING\0\0x");
    let stream = [&[1, 1, b'a'][..], &ping, &[1, 2, b'b', b'c', 0, 1, b'd', 0, 1, b'e']].concat();
    let outcome = expected(Direction::Replies { header: HEADER, payload: PAYLOAD, frames: FRAMES }, &stream);
    let inner = vec![1, 1, b'a', 1, 0, 0, 0, 0, 1, b'e'];
    let pongs = vec![command_frame(b"\x04PONGx")];
    let payloads = vec![b"bc".to_vec()];
    assert_eq!(outcome, Outcome { inner, payloads, messages: 2, pongs, whole: true, refused: false });
}
