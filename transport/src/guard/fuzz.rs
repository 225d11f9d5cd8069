//! Fuzz targets for ZMTP, compared with a second implementation of RFC 23 that parses the whole input at once.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::Activity;
use enjambre_core::runtime::buffers::BufferPool;
use futures::FutureExt;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use super::disconnect::Disconnect;
use super::frame::{Direction, MAX_COMMAND, command_frame};
use super::gate::RequestGate;
use super::handshake::{self, SocketInfo, shake_hands};
use super::splice::{self, Inbound, Payloads};
use crate::scripted_remote::ScriptedRemote;

const HEADER: u64 = 40;
const PAYLOAD: u64 = 700;
const FRAMES: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(3600);
/// The sizes of the chunks in which the input arrives.
const CHUNKS: [usize; 3] = [1, 7, usize::MAX];

/// A greeting and READY. The result does not depend on the chunk size.
pub(crate) fn greeting(data: &[u8]) {
    let router = SocketInfo { socket_type: "ROUTER", identity: b"" };
    let greeted = CHUNKS.map(|chunk| {
        let mut remote = ScriptedRemote::new(data, chunk);
        let greeted = shake_hands(&mut remote, router, &["DEALER", "REQ"]).now_or_never();
        (
            greeted.expect("the end of the input ends the handshake").map_err(|reason| reason.to_string()),
            remote.sends,
        )
    });
    assert_eq!(greeted[0], greeted[1]);
    assert_eq!(greeted[0], greeted[2]);
    let [(greeted, rest), ..] = greeted;
    if greeted.is_ok() {
        let consumed = &data[..data.len() - rest.len()];
        assert_eq!((consumed[0], consumed[9] & 1, &consumed[12..16]), (0xff, 1, &b"NULL"[..]));
        assert!(consumed.len() <= 64 + 9 + MAX_COMMAND);
        assert!(
            [&b"DEALER"[..], b"REQ"]
                .iter()
                .any(|kind| consumed.windows(kind.len()).any(|part| part == *kind))
        );
    }
}

/// Messages from a client.
pub(crate) fn requests(data: &[u8]) {
    check(Direction::Requests { header: HEADER, payload: PAYLOAD, frames: FRAMES }, data);
}

/// Messages from a server.
pub(crate) fn replies(data: &[u8]) {
    check(Direction::Replies { header: HEADER, payload: PAYLOAD, frames: FRAMES }, data);
}

/// The result of forwarding a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// The bytes forwarded to the crate.
    inner: Vec<u8>,
    payloads: Vec<Vec<u8>>,
    messages: u64,
    /// The replies to commands.
    pongs: Vec<Vec<u8>>,
    /// Whether the stream is valid and ends between two messages.
    complete: bool,
    /// Whether the stream is invalid.
    rejected: bool,
}

fn check(direction: Direction, data: &[u8]) {
    let expected = expected(direction, data);
    for chunk in CHUNKS {
        let outcome = actual(direction, data, chunk);
        if expected.rejected {
            // The number of messages forwarded before the rejection depends on the chunk size.
            assert!(outcome.rejected && expected.inner.starts_with(&outcome.inner), "{chunk}");
            assert!(expected.payloads.starts_with(&outcome.payloads), "{chunk}");
            assert!(outcome.messages <= expected.messages, "{chunk}");
        } else {
            assert_eq!(outcome, expected, "{chunk}");
        }
        assert_harmless(direction, &outcome);
    }
}

/// The crate receives no commands, and only frames within the limit of a header.
fn assert_harmless(direction: Direction, outcome: &Outcome) {
    let mut rest = &outcome.inner[..];
    while let Some(frame) = frame(&mut rest) {
        assert!(!frame.command && frame.declared <= HEADER);
        let _ = body(&mut rest, frame.declared);
        let replies = matches!(direction, Direction::Replies { .. });
        assert!(replies || outcome.payloads.is_empty());
    }
    assert!(outcome.payloads.iter().all(|payload| payload.len() as u64 <= PAYLOAD));
}

/// Runs the real implementation.
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
    // Enough for all messages that the input can contain.
    let capacity = data.len() + 1;
    let (to, mut payloads) = mpsc::channel(capacity);
    let (pong, mut pongs) = mpsc::channel(capacity);
    let requests = matches!(direction, Direction::Requests { .. });
    let gate = requests.then(|| RequestGate::new(capacity, capacity * HEADER as usize));
    let receiver =
        Crate { gate, payloads: Payloads { pool: BufferPool::new(0), to }, messages: AtomicU64::new(0) };
    let (mut from, mut inner) = (ScriptedRemote::new(data, chunk), ScriptedRemote::new(b"", 0));
    let activity = Activity::default();
    let inbound = splice::inbound(&mut from, &mut inner, direction, &receiver, &activity, &pong, TIMEOUT);
    let ended = run_ready(inbound);
    Outcome {
        payloads: drain(&mut payloads).iter().map(|payload: &Bytes| payload.to_vec()).collect(),
        pongs: drain(&mut pongs),
        messages: receiver.messages.into_inner(),
        inner: inner.received,
        complete: ended.is_ok(),
        rejected: matches!(ended, Err(Disconnect::Protocol(_) | Disconnect::LimitExceeded { .. })),
    }
}

/// Runs a future that does not wait.
fn run_ready<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        work.now_or_never().expect("the future is ready")
    })
}

fn drain<T>(from: &mut mpsc::Receiver<T>) -> Vec<T> {
    std::iter::from_fn(|| from.try_recv().ok()).collect()
}

struct Frame<'a> {
    head: &'a [u8],
    command: bool,
    more: bool,
    reserved: bool,
    declared: u64,
}

/// Takes a frame header from the input, or `None` if it is incomplete.
fn frame<'a>(rest: &mut &'a [u8]) -> Option<Frame<'a>> {
    let flags = *rest.first()?;
    let reserved = flags & 0b1111_1000 != 0;
    let length = if reserved {
        1
    } else if flags & 2 == 0 {
        2
    } else {
        9
    };
    let (head, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    let declared = head[1..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some(Frame { head, command: flags & 4 != 0, more: flags & 1 != 0, reserved, declared })
}

/// Takes the available bytes of a body, and returns whether the body is complete.
fn body<'a>(rest: &mut &'a [u8], declared: u64) -> (&'a [u8], bool) {
    let here = usize::try_from(declared).unwrap_or(usize::MAX).min(rest.len());
    let (body, behind) = rest.split_at(here);
    *rest = behind;
    (body, here as u64 == declared)
}

/// Computes the expected result.
fn expected(direction: Direction, data: &[u8]) -> Outcome {
    let requests = matches!(direction, Direction::Requests { .. });
    let mut outcome = Outcome::default();
    let rejected = |outcome| Outcome { rejected: true, ..outcome };
    let mut rest = data;
    // State of the current message.
    let (mut frames, mut total, mut delimited) = (0, 0_u64, false);
    loop {
        let Some(Frame { head, command, more, reserved, declared }) = frame(&mut rest) else {
            outcome.complete = rest.is_empty() && frames == 0;
            return outcome;
        };
        if reserved || command && (more || declared > MAX_COMMAND as u64) {
            return rejected(outcome);
        }
        if command {
            let (body, complete) = body(&mut rest, declared);
            if !complete {
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
            return rejected(outcome);
        }
        delimited = frames == 1 && more && declared == 0;
        // A frame other than the header is replaced by an empty frame.
        let empty = [head[0] & 1, 0];
        outcome.inner.extend_from_slice(if is_header { head } else { &empty });
        let (body, complete) = body(&mut rest, declared);
        if is_header {
            outcome.inner.extend_from_slice(body);
        }
        if !complete {
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
fn expected_result_of_a_stream_with_all_elements() {
    let ping = command_frame(b"\x04PING\0\0x");
    let stream = [&[1, 1, b'a'][..], &ping, &[1, 2, b'b', b'c', 0, 1, b'd', 0, 1, b'e']].concat();
    let outcome = expected(Direction::Replies { header: HEADER, payload: PAYLOAD, frames: FRAMES }, &stream);
    let inner = vec![1, 1, b'a', 1, 0, 0, 0, 0, 1, b'e'];
    let pongs = vec![command_frame(b"\x04PONGx")];
    let payloads = vec![b"bc".to_vec()];
    assert_eq!(outcome, Outcome { inner, payloads, messages: 2, pongs, complete: true, rejected: false });
}
