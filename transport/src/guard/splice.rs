//! Carries bytes between a public socket and the crate's private one, frame by frame.
//!
//! Two loops per connection, one for each direction. Message bytes go on from the buffer that they were read into;
//! commands are taken out, and answered where they ask for it. Neither loop reads more than it can hand on, so a
//! side that does not read stops the other, and one that does not read for too long is cut off.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use enjambre_core::transport::calls::Activity;

use super::cutoff::CutOff;
use super::ending::HangUp;
use super::frame::{Direction, FrameWalker, Step, empty_frame};
use super::gate::RequestGate;
use super::handshake;

/// The buffer for replies: enough to make the cost of a system call small against that of the copy.
pub(crate) const BULK: usize = 256 * 1024;
/// The buffer for requests, which are small. More than the largest command.
pub(crate) const SMALL: usize = 32 * 1024;
/// PONGs that wait to be sent; who sends more PINGs meanwhile gets fewer answers.
pub(crate) const MAX_PONGS: usize = 4;

/// Lets messages of a remote in, and is told what came through.
pub(crate) trait Inbound: Send + Sync {
    /// What every message must pass; none where all may come in.
    fn gate(&self) -> Option<&RequestGate>;
    /// Message bytes are on their way inwards; this many messages end with them.
    fn passed(&self, messages: u64);
}

/// Writes all of it, at most a buffer full, within the time. Who takes a byte now and then would otherwise hold on to
/// the room that others need.
async fn write<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8], stalled: Duration) -> Result<(), CutOff> {
    if bytes.is_empty() {
        return Ok(());
    }
    match tokio::time::timeout(stalled, to.write_all(bytes)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(CutOff::Stalled),
    }
}

/// A buffer with the bytes that were read and not yet handed on. It grows with what comes: most connections are quiet.
struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
    largest: usize,
    /// The last read filled it to the end.
    full: bool,
}

impl Buffer {
    fn new(largest: usize) -> Self {
        Self { bytes: vec![0; SMALL.min(largest)], filled: 0, largest, full: false }
    }

    async fn fill<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<usize, CutOff> {
        if self.full && self.bytes.len() < self.largest {
            self.bytes.resize(self.largest, 0);
        }
        let read = from.read(&mut self.bytes[self.filled..]).await?;
        self.filled += read;
        self.full = self.filled == self.bytes.len();
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
    let mut buffer = Buffer::new(if matches!(direction, Direction::Requests { .. }) { SMALL } else { BULK });
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
                Step::Frame { header, body, opens, more, keep } => {
                    let kept = if keep { u32::try_from(body).unwrap_or(u32::MAX) } else { 0 };
                    if let Some(gate) = inbound.gate()
                        && !gate.try_enter(opens, kept)
                    {
                        // What is before this message must be answered to make room for it.
                        inbound.passed(std::mem::take(&mut messages));
                        write(to, &bytes[run..at], stalled).await?;
                        run = at;
                        tokio::select! {
                            biased;
                            () = from.hung_up() => return Err(CutOff::Closed),
                            () = gate.enter(opens, kept) => {}
                        }
                    }
                    if let Some(gate) = inbound.gate() {
                        gate.set_arriving(true);
                    }
                    if !keep {
                        write(to, &bytes[run..at], stalled).await?;
                        write(to, &empty_frame(more), stalled).await?;
                        run = at + header;
                    }
                    at += header;
                }
                Step::Body { bytes: length, closes, keep } => {
                    at += length;
                    if !keep {
                        run = at;
                    }
                    messages += u64::from(closes);
                    if closes && let Some(gate) = inbound.gate() {
                        gate.set_arriving(false);
                    }
                }
                Step::Command { bytes: length, body } => {
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

/// From the crate to the remote. Calls `sent` with the number of messages that have left.
pub(crate) async fn outbound<R, W>(
    from: &mut R,
    to: &mut W,
    sent: impl Fn(usize),
    activity: &Activity,
    pongs: &mut mpsc::Receiver<Vec<u8>>,
    stalled: Duration,
    buffer: usize,
) -> Result<(), CutOff>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut walker = FrameWalker::new(Direction::Own);
    let mut buffer = Buffer::new(buffer);
    loop {
        let idle = walker.at_boundary() && buffer.filled == 0;
        let read = tokio::select! {
            read = buffer.fill(from) => read?,
            Some(pong) = pongs.recv(), if idle => {
                write(to, &pong, stalled).await?;
                continue;
            }
        };
        if read == 0 {
            return Err(CutOff::Local);
        }
        let (mut at, mut messages, mut boundary) = (0, 0, None);
        loop {
            match walker.step(&buffer.bytes[at..buffer.filled])? {
                Step::Incomplete => break,
                Step::Frame { header, .. } => at += header,
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
        let mut begin = 0;
        if let Some(boundary) = boundary
            && let Ok(pong) = pongs.try_recv()
        {
            write(to, &buffer.bytes[..boundary], stalled).await?;
            write(to, &pong, stalled).await?;
            begin = boundary;
        }
        write(to, &buffer.bytes[begin..at], stalled).await?;
        activity.heard();
        sent(messages);
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
    async fn carry(mut public: DuplexStream, mut inner: DuplexStream, gate: &Gate) -> Result<(), CutOff> {
        let (mut from_public, mut to_public) = tokio::io::split(&mut public);
        let (mut from_inner, mut to_inner) = tokio::io::split(&mut inner);
        let activity = Activity::default();
        let (pong, mut pongs) = mpsc::channel(MAX_PONGS);
        tokio::select! {
            end = inbound(&mut from_public, &mut to_inner, REQUESTS, gate, &activity, &pong, HOUR) => end,
            end = outbound(&mut from_inner, &mut to_public, |_| {}, &activity, &mut pongs, HOUR, BULK) => end,
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
