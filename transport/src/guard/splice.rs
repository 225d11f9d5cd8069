//! Carries bytes between a public socket and the crate's private one, frame by frame.
//!
//! Two loops per connection, one for each direction. Message bytes go on from the buffer that they were read into;
//! commands are taken out, and answered where they ask for it. Neither loop reads more than it can hand on, so a
//! side that does not read stops the other, and one that does not read for too long is cut off.
//!
//! The payloads of replies do not pass through the crate, which would copy each twice and keep buffers of that size for
//! as long as the connection lasts: an empty last frame keeps a payload's place, and the guard sends or receives it there.

use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use enjambre_core::buffers::BufferPool;
use enjambre_core::transport::calls::Activity;

use super::cutoff::CutOff;
use super::ending::HangUp;
use super::frame::{Content, Direction, FrameWalker, Step, empty_frame, last_header};
use super::gate::RequestGate;
use super::handshake;

/// What is read at once of everything but payloads. More than the largest command.
pub(crate) const BUFFER: usize = 32 * 1024;
/// So much of a payload must be taken within the time that is allowed.
const LEAST: usize = 256 * 1024;
/// PONGs that wait to be sent; who sends more PINGs meanwhile gets fewer answers.
pub(crate) const MAX_PONGS: usize = 4;

/// Lets messages of a remote in, and is told what came through.
pub(crate) trait Inbound: Send + Sync {
    /// What every message must pass; none where all may come in.
    fn gate(&self) -> Option<&RequestGate>;
    /// Where payloads go; none where messages have none.
    fn payloads(&self) -> Option<&Payloads>;
    /// Message bytes are on their way inwards; this many messages end with them.
    fn passed(&self, messages: u64);
}

/// The way of payloads past the crate.
#[derive(Debug)]
pub(crate) struct Payloads {
    /// What they are read into.
    pub(crate) pool: BufferPool,
    /// Takes the payload of each message with more than one frame, in their order.
    pub(crate) to: mpsc::Sender<Bytes>,
}

/// What leaves besides the bytes that the crate sends.
pub(crate) trait Outbound: Send + Sync {
    /// The payload of a message, for which the message ends with an empty frame. Before it, `messages` others were sent
    /// that [`Outbound::sent`] has not been told of.
    fn payload(&self, messages: usize) -> Option<Bytes>;
    /// The oldest messages have left.
    fn sent(&self, messages: usize);
}

/// Requests, which have no payloads and need not be counted.
impl Outbound for () {
    fn payload(&self, _messages: usize) -> Option<Bytes> {
        None
    }

    fn sent(&self, _messages: usize) {}
}

/// Writes all of it within the time. Who takes a byte now and then would otherwise hold on to the room that others need.
async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    mut bytes: impl Buf,
    stalled: Duration,
) -> Result<(), CutOff> {
    if !bytes.has_remaining() {
        return Ok(());
    }
    let written = async {
        to.write_all_buf(&mut bytes).await?;
        to.flush().await
    };
    match tokio::time::timeout(stalled, written).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(CutOff::Stalled),
    }
}

/// A buffer with the bytes that were read and not yet handed on.
struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER], filled: 0 }
    }

    async fn fill<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<usize, CutOff> {
        let read = from.read(&mut self.bytes[self.filled..]).await?;
        self.filled += read;
        Ok(read)
    }

    /// Forgets the first `done` bytes. What is left is the beginning of a frame's header or a command, so it is short.
    fn consume(&mut self, done: usize) {
        self.bytes.copy_within(done..self.filled, 0);
        self.filled -= done;
    }
}

/// From the remote to the crate, until the remote closes or breaks a rule.
pub(crate) async fn inbound<R, W>(
    from: &mut R,
    to: &mut W,
    direction: Direction,
    inbound: &impl Inbound,
    activity: &Activity,
    pongs: &mpsc::Sender<Vec<u8>>,
    stalled: Duration,
) -> Result<(), CutOff>
where
    R: AsyncRead + HangUp + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut walker = FrameWalker::new(direction);
    let mut buffer = Buffer::new();
    loop {
        if buffer.fill(from).await? == 0 {
            let whole = walker.at_boundary() && buffer.filled == 0;
            return if whole { Ok(()) } else { Err(CutOff::Closed) };
        }
        activity.heard();
        // Bytes before `run` are dealt with, those from there to `at` go inwards as they are.
        let (mut run, mut at, mut messages) = (0, 0, 0);
        loop {
            let bytes = &buffer.bytes[..buffer.filled];
            match walker.step(&bytes[at..])? {
                Step::Incomplete => break,
                Step::Frame { header, body, opens, more, content } => {
                    let passes = content == Content::Passes;
                    let kept = if passes { u32::try_from(body).unwrap_or(u32::MAX) } else { 0 };
                    if let Some(gate) = inbound.gate()
                        && !gate.try_enter(opens, kept)
                    {
                        // What is before this message must be answered to make room for it.
                        inbound.passed(std::mem::take(&mut messages));
                        write(to, &bytes[run..at], stalled).await?;
                        run = at;
                        gate.set_arriving(false);
                        tokio::select! {
                            biased;
                            () = from.hung_up() => return Err(CutOff::Closed),
                            () = gate.enter(opens, kept) => {}
                        }
                    }
                    if let Some(gate) = inbound.gate() {
                        gate.set_arriving(true);
                    }
                    if !passes {
                        inbound.passed(std::mem::take(&mut messages));
                        let empty = empty_frame(more);
                        write(to, Buf::chain(&bytes[run..at], &empty[..]), stalled).await?;
                        run = at + header;
                    }
                    at += header;
                    if content == Content::Payload
                        && let Some(payloads) = inbound.payloads()
                    {
                        let payload = payload(from, &bytes[at..], body, &payloads.pool, activity).await?;
                        at += payload.len().min(bytes.len() - at);
                        run = at;
                        messages += u64::from(walker.skip_body());
                        inbound.passed(std::mem::take(&mut messages));
                        // Who takes it has the frames that were before it.
                        payloads.to.send(payload).await.map_err(|_| CutOff::Local)?;
                    }
                }
                Step::Body { bytes: length, closes, content } => {
                    at += length;
                    if content != Content::Passes {
                        run = at;
                    }
                    messages += u64::from(closes);
                    if closes && let Some(gate) = inbound.gate() {
                        gate.set_arriving(false);
                    }
                }
                Step::Command { bytes: length, body } => {
                    inbound.passed(std::mem::take(&mut messages));
                    write(to, &bytes[run..at], stalled).await?;
                    if let Some(pong) = handshake::answer(&bytes[at..][body]) {
                        // Full: enough answers are on the way.
                        let _ = pongs.try_send(pong);
                    }
                    at += length;
                    run = at;
                }
            }
        }
        // Counted before they can be received, so that nobody stops receiving too early.
        inbound.passed(messages);
        write(to, &buffer.bytes[run..at], stalled).await?;
        buffer.consume(at);
    }
}

/// Reads a payload of so many bytes that begins with `here` and goes on in the stream.
async fn payload<R: AsyncRead + Unpin>(
    from: &mut R,
    here: &[u8],
    length: u64,
    pool: &BufferPool,
    activity: &Activity,
) -> Result<Bytes, CutOff> {
    // It was checked against the limit.
    let mut payload = pool.take(usize::try_from(length).unwrap_or(usize::MAX));
    let mut have = here.len().min(payload.len());
    payload[..have].copy_from_slice(&here[..have]);
    while have < payload.len() {
        let read = from.read(&mut payload[have..]).await?;
        if read == 0 {
            return Err(CutOff::Closed);
        }
        activity.heard();
        have += read;
    }
    Ok(payload.freeze())
}

/// Writes a payload as the last frame of its message, and in front of it what is to leave before.
async fn write_payload<W: AsyncWrite + Unpin>(
    to: &mut W,
    before: &[u8],
    payload: &Bytes,
    stalled: Duration,
    activity: &Activity,
) -> Result<(), CutOff> {
    let header = last_header(payload.len());
    let (first, rest) = payload.split_at(payload.len().min(LEAST));
    write(to, Buf::chain(before, &header[..]).chain(first), stalled).await?;
    for part in rest.chunks(LEAST) {
        activity.heard();
        write(to, part, stalled).await?;
    }
    Ok(())
}

/// From the crate to the remote, with the payloads in the places that are kept for them.
pub(crate) async fn outbound<R, W>(
    from: &mut R,
    to: &mut W,
    outbound: &impl Outbound,
    activity: &Activity,
    pongs: &mut mpsc::Receiver<Vec<u8>>,
    stalled: Duration,
) -> Result<(), CutOff>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut walker = FrameWalker::new(Direction::Own);
    let mut buffer = Buffer::new();
    loop {
        let idle = walker.at_boundary() && buffer.filled == 0;
        let read = tokio::select! {
            read = buffer.fill(from) => read?,
            Some(pong) = pongs.recv(), if idle => {
                write(to, &pong[..], stalled).await?;
                continue;
            }
        };
        if read == 0 {
            return Err(CutOff::Local);
        }
        // Bytes before `begin` are dealt with.
        let (mut begin, mut at, mut messages, mut boundary) = (0, 0, 0, None);
        loop {
            match walker.step(&buffer.bytes[at..buffer.filled])? {
                Step::Incomplete => break,
                Step::Frame { header, body, opens, more, .. } => {
                    let may_be_a_place = body == 0 && !opens && !more;
                    let payload = if may_be_a_place { outbound.payload(messages) } else { None };
                    if let Some(payload) = payload {
                        write_payload(to, &buffer.bytes[begin..at], &payload, stalled, activity).await?;
                        at += header;
                        walker.skip_body();
                        // Large ones may be behind it: what has left makes room for others, and a PONG does not wait.
                        outbound.sent(std::mem::take(&mut messages) + 1);
                        if let Ok(pong) = pongs.try_recv() {
                            write(to, &pong[..], stalled).await?;
                        }
                        (begin, boundary) = (at, None);
                    } else {
                        at += header;
                    }
                }
                Step::Body { bytes, closes, .. } => {
                    at += bytes;
                    if closes {
                        messages += 1;
                        boundary = Some(at);
                    }
                }
                // The crate sends none after its READY, and the remote needs none of it.
                Step::Command { .. } => {
                    return Err(CutOff::Protocol("the socket behind the guard sent a command"));
                }
            }
        }
        if let Some(boundary) = boundary
            && let Ok(pong) = pongs.try_recv()
        {
            write(to, &buffer.bytes[begin..boundary], stalled).await?;
            write(to, &pong[..], stalled).await?;
            begin = boundary;
        }
        write(to, &buffer.bytes[begin..at], stalled).await?;
        activity.heard();
        outbound.sent(messages);
        buffer.consume(at);
    }
}

/// Tells when a count has come back to zero.
#[derive(Debug, Default)]
pub(crate) struct Emptied {
    notify: Notify,
}

impl Emptied {
    /// The count is zero now.
    pub(crate) fn signal(&self) {
        self.notify.notify_waiters();
    }

    /// Returns when `is_empty`, which is looked at now and after each signal.
    pub(crate) async fn wait(&self, is_empty: impl Fn() -> bool) {
        loop {
            let signalled = self.notify.notified();
            tokio::pin!(signalled);
            signalled.as_mut().enable();
            if is_empty() {
                return;
            }
            signalled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::frame::command_frame;
    use parking_lot::Mutex;
    use std::collections::VecDeque;
    use tokio::io::{DuplexStream, ReadHalf, duplex};

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

        fn payloads(&self) -> Option<&Payloads> {
            None
        }

        fn passed(&self, _messages: u64) {}
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const REQUESTS: Direction = Direction::Requests { header: 1024, payload: 1024, frames: 4 };

    async fn read(from: &mut DuplexStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Runs both loops over the streams until one ends, and returns what it returned.
    async fn carry(public: DuplexStream, inner: DuplexStream, gate: &Gate) -> Result<(), CutOff> {
        carry_with(public, inner, REQUESTS, gate, &()).await
    }

    async fn carry_with(
        mut public: DuplexStream,
        mut inner: DuplexStream,
        direction: Direction,
        to_crate: &impl Inbound,
        to_remote: &impl Outbound,
    ) -> Result<(), CutOff> {
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
    async fn a_request_beyond_the_gate_waits_and_those_before_it_do_not() {
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
            end = carry(public, inner, &gate) => panic!("{end:?}"),
            () = test => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pong_goes_between_two_replies() {
        let gate = Gate(RequestGate::new(2, 1024));
        let (mut remote, public) = duplex(4096);
        let (inner, mut socket) = duplex(4096);
        let pong = command_frame(b"\x04PONGx");
        let test = async {
            // Half a reply, then a PING, then the other half and the beginning of the next.
            socket.write_all(&[0, 4, 1, 2]).await.unwrap();
            assert_eq!(read(&mut remote, 4).await, [0, 4, 1, 2]);
            remote.write_all(&command_frame(b"\x04PING\0\0x")).await.unwrap();
            remote.write_all(&[0, 1, b'a']).await.unwrap();
            assert_eq!(read(&mut socket, 3).await, [0, 1, b'a'], "the command stays outside");
            socket.write_all(&[3, 4, 0, 2, 9]).await.unwrap();
            let expected = [&[3, 4][..], &pong, &[0, 2, 9]].concat();
            assert_eq!(read(&mut remote, expected.len()).await, expected);
        };
        tokio::select! {
            end = carry(public, inner, &gate) => panic!("{end:?}"),
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
    async fn a_payload_leaves_in_the_place_that_is_kept_for_it() {
        let gate = Gate(RequestGate::new(2, 1024));
        let payloads = [&b"some"[..], b"", &[7; 600_000], b""].map(Bytes::from_static);
        let replies = Replies(Mutex::new(payloads.into()));
        let (mut remote, public) = duplex(4096);
        let (inner, mut socket) = duplex(4096);
        let test = async {
            // The second is only a header, the fourth ends with an empty frame that is meant to be one.
            let sent =
                [&[1, 1, b'a', 0, 0][..], &[0, 1, b'b'], &[1, 0, 1, 1, b'c', 0, 0], &[1, 1, b'd', 0, 0]];
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
            end = carry_with(public, inner, REQUESTS, &gate, &replies) => panic!("{end:?}"),
            () = test => {}
        }
        assert!(replies.0.lock().is_empty());
    }

    /// A frame with a header of the long form, which may be there for a short body, too.
    fn frame(more: bool, body: &[u8]) -> Vec<u8> {
        [&[2 | u8::from(more)][..], &(body.len() as u64).to_be_bytes(), body].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_payload_makes_room_and_gets_its_pong_before_the_next() {
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
            assert_eq!(replies.0.lock().len(), 1, "the last one has not left");
            let expected = [&[1, 1, b'c'], &frame(false, &payload)[..], &pong, &pong].concat();
            assert!(read(&mut remote, expected.len()).await == expected);
        };
        tokio::select! {
            end = carry_with(public, inner, REQUESTS, &gate, &replies) => panic!("{end:?}"),
            () = test => {}
        }
    }

    /// Over streams that hold so many bytes at a time.
    async fn replies_go_over(chunk: usize, payloads: &[usize]) {
        let payload = |(at, &length): (usize, &usize)| Bytes::from(vec![at as u8; length]);
        let payloads: Vec<Bytes> = payloads.iter().enumerate().map(payload).collect();
        let reply = |(at, payload): (usize, &Bytes)| {
            let header = frame(!payload.is_empty(), &vec![b'h'; at]);
            [&header[..], if payload.is_empty() { &[] } else { &[0, 0] }].concat()
        };
        let stream: Vec<u8> = payloads.iter().enumerate().flat_map(reply).collect();
        let replies = Replies(Mutex::new(payloads.clone().into()));
        let (to, mut taken) = mpsc::channel(1);
        let receiver = Taken(Payloads { pool: BufferPool::new(1 << 20), to });
        let direction = Direction::Replies { header: 1024, payload: 1 << 20, frames: 4 };

        let ((mut socket, mut from_socket), (mut here, mut there)) = (duplex(chunk), duplex(chunk));
        let (mut to_crate, mut crate_end) = duplex(chunk);
        let (mut from_here, _) = tokio::io::split(&mut there);
        let activity = Activity::default();
        let (pong, mut pongs) = mpsc::channel(MAX_PONGS);
        let carried = async {
            tokio::join!(socket.write_all(&stream), read(&mut crate_end, stream.len()), async {
                for expected in payloads.iter().filter(|payload| !payload.is_empty()) {
                    assert!(taken.recv().await.unwrap() == expected, "{chunk}");
                }
            })
        };
        tokio::select! {
            end = outbound(&mut from_socket, &mut here, &replies, &activity, &mut pongs, HOUR) => panic!("{end:?}"),
            end = inbound(&mut from_here, &mut to_crate, direction, &receiver, &activity, &pong, HOUR) => {
                panic!("{end:?}")
            }
            (_, received, ()) = carried => assert!(received == stream, "{chunk}"),
        }
        assert!(taken.try_recv().is_err() && replies.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn replies_and_their_payloads_are_the_same_however_the_streams_are_cut() {
        for chunk in 1..40 {
            replies_go_over(chunk, &[3, 0, 255, 1, 0, 0, 256, 70, 2]).await;
        }
        for chunk in [1000, BUFFER - 1, BUFFER, 1 << 20] {
            replies_go_over(chunk, &[3, 0, BUFFER, 40_000, 0, 600_000, 1, 32_000, 5]).await;
        }
    }

    struct Taken(Payloads);

    impl Inbound for Taken {
        fn gate(&self) -> Option<&RequestGate> {
            None
        }

        fn payloads(&self) -> Option<&Payloads> {
            Some(&self.0)
        }

        fn passed(&self, _messages: u64) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_payload_comes_in_beside_the_crate_and_no_further_one_before_it_is_taken() {
        let (to, mut payloads) = mpsc::channel(1);
        let taken = Taken(Payloads { pool: BufferPool::new(0), to });
        let direction = Direction::Replies { header: 1024, payload: 1 << 20, frames: 4 };
        let (mut remote, public) = duplex(4096);
        let (inner, mut socket) = duplex(4096);
        let reply = |name, byte, length: u64| {
            [&[1, 1, name, 2][..], &length.to_be_bytes(), &vec![byte; length as usize]].concat()
        };
        let test = async {
            // A PING between the frames of a reply, and an empty payload.
            remote.write_all(&[1, 1, b'a']).await.unwrap();
            remote.write_all(&command_frame(b"\x04PING\0\0x")).await.unwrap();
            remote.write_all(&[0, 0]).await.unwrap();
            remote.write_all(&reply(b'b', 7, 100_000)).await.unwrap();
            assert_eq!(read(&mut socket, 10).await, [1, 1, b'a', 0, 0, 1, 1, b'b', 0, 0]);
            // It has read this one and holds it.
            let held = tokio::time::timeout(HOUR, remote.write_all(&reply(b'c', 8, 100_000))).await;
            assert!(held.is_err());
            assert_eq!(payloads.recv().await.unwrap(), b""[..]);
            assert_eq!(payloads.recv().await.unwrap(), vec![7; 100_000]);
        };
        tokio::select! {
            end = carry_with(public, inner, direction, &taken, &()) => panic!("{end:?}"),
            () = test => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_in_time() {
        let gate = Gate(RequestGate::new(2, 1024));
        let (_remote, public) = duplex(16);
        let (inner, mut socket) = duplex(4096);
        socket.write_all(&[0, 100]).await.unwrap();
        socket.write_all(&[7; 100]).await.unwrap();
        let begin = tokio::time::Instant::now();
        assert!(matches!(carry(public, inner, &gate).await, Err(CutOff::Stalled)));
        assert_eq!(begin.elapsed(), HOUR);
    }
}
