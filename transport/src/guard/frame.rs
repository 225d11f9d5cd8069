//! Walks ZMTP 3.0 frames as their bytes pass (RFC 23, "Framing").
//!
//! The walker keeps no bytes: it is shown what is there, says what comes next, and wants to see again what it could
//! not yet tell. A frame's declared length is checked before a byte of its body is looked at.

use std::ops::Range;

use super::cutoff::CutOff;

/// The largest command in bytes; a READY or a PING is far below.
pub(crate) const MAX_COMMAND: usize = 4096;
/// The longest header of a frame: flags and a length of 8 bytes.
const LONG_HEADER: usize = 9;

const MORE: u8 = 0b001;
const LONG: u8 = 0b010;
const COMMAND: u8 = 0b100;

/// What the messages of a direction may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// From a client: a header after an optional empty delimiter. Further frames make the request malformed.
    Requests { header: u64, payload: u64, frames: usize },
    /// From a server: a header and an optional payload. Further frames make it none.
    Replies { header: u64, payload: u64, frames: usize },
    /// From this program itself: only walked to find where messages end.
    Own,
}

/// What becomes of the body of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// It goes on as it is.
    Passes,
    /// It is a payload, which reaches the other side on a shorter way.
    Payload,
    /// It is of no interest to anyone.
    Dropped,
}

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It cannot be told yet: more bytes are needed.
    Incomplete,
    /// The header of a frame, this many bytes long, with the length of the body that follows.
    Frame { header: usize, body: u64, opens: bool, more: bool, content: Content },
    /// This many bytes of the body of a frame; `closes` when a message ends with them.
    Body { bytes: usize, closes: bool, content: Content },
    /// A whole command, this many bytes long, and where its body is.
    Command { bytes: usize, body: Range<usize> },
}

#[derive(Debug)]
pub(crate) struct FrameWalker {
    direction: Direction,
    /// Bytes of the current frame's body that are still to come; none between frames.
    body: Option<u64>,
    more: bool,
    content: Content,
    /// Of the current message: frames begun, bytes declared, and whether its first frame is an empty delimiter.
    frames: usize,
    total: u64,
    delimited: bool,
}

impl FrameWalker {
    pub(crate) const fn new(direction: Direction) -> Self {
        let content = Content::Passes;
        Self { direction, body: None, more: false, content, frames: 0, total: 0, delimited: false }
    }

    /// Whether a message could begin here.
    pub(crate) const fn at_boundary(&self) -> bool {
        self.body.is_none() && self.frames == 0
    }

    /// What the bytes begin with.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, CutOff> {
        match self.body {
            Some(left) => Ok(self.body(left, bytes.len())),
            None => self.header(bytes),
        }
    }

    /// The whole body of the frame that was announced last is dealt with. Whether a message ends with it.
    pub(crate) fn skip_body(&mut self) -> bool {
        let left = self.body.unwrap_or(0);
        matches!(
            self.body(left, usize::try_from(left).unwrap_or(usize::MAX)),
            Step::Body { closes: true, .. }
        )
    }

    fn body(&mut self, left: u64, available: usize) -> Step {
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(available);
        if bytes == 0 && left > 0 {
            return Step::Incomplete;
        }
        let left = left - bytes as u64;
        self.body = (left > 0).then_some(left);
        let closes = left == 0 && !self.more;
        let content = self.content;
        if closes {
            *self = Self::new(self.direction);
        }
        Step::Body { bytes, closes, content }
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Step, CutOff> {
        let Some(&flags) = bytes.first() else { return Ok(Step::Incomplete) };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(CutOff::Protocol("reserved bits are set in the flags of a frame"));
        }
        let (header, body) = if flags & LONG == 0 {
            let Some(&length) = bytes.get(1) else { return Ok(Step::Incomplete) };
            (2, u64::from(length))
        } else {
            let Some(length) = bytes.get(1..LONG_HEADER).and_then(|length| length.try_into().ok()) else {
                return Ok(Step::Incomplete);
            };
            (LONG_HEADER, u64::from_be_bytes(length))
        };
        let more = flags & MORE != 0;
        if flags & COMMAND != 0 {
            return Self::command(bytes, header, body, more);
        }
        let opens = self.frames == 0;
        let content = self.check(body)?;
        self.delimited = opens && more && body == 0;
        self.frames += 1;
        self.total = self.total.saturating_add(body);
        (self.body, self.more, self.content) = (Some(body), more, content);
        Ok(Step::Frame { header, body, opens, more, content })
    }

    // libzmq puts a PING between any two frames, so a command may come within a message.
    fn command(bytes: &[u8], header: usize, body: u64, more: bool) -> Result<Step, CutOff> {
        if more {
            return Err(CutOff::Protocol("a command has the flag MORE"));
        }
        limit("command", MAX_COMMAND as u64, body)?;
        let end = header + usize::try_from(body).unwrap_or(MAX_COMMAND);
        if bytes.len() < end {
            return Ok(Step::Incomplete);
        }
        Ok(Step::Command { bytes: end, body: header..end })
    }

    /// Checks the next frame of a message, and tells what becomes of it.
    fn check(&self, body: u64) -> Result<Content, CutOff> {
        let (header, payload, frames) = match self.direction {
            Direction::Own => return Ok(Content::Passes),
            Direction::Requests { header, payload, frames }
            | Direction::Replies { header, payload, frames } => (header, payload, frames),
        };
        limit("message with a number of frames", frames as u64, self.frames as u64 + 1)?;
        limit("message", header.saturating_add(payload), self.total.saturating_add(body))?;
        let is_request = matches!(self.direction, Direction::Requests { .. });
        if self.frames == 0 || is_request && self.frames == 1 && self.delimited {
            limit("header", header, body)?;
            return Ok(Content::Passes);
        }
        limit("payload", payload, body)?;
        Ok(if self.frames == 1 && !is_request { Content::Payload } else { Content::Dropped })
    }
}

fn limit(what: &'static str, limit: u64, actual: u64) -> Result<(), CutOff> {
    if actual > limit {
        return Err(CutOff::Limit { what, limit, actual });
    }
    Ok(())
}

/// The header of an empty frame.
pub(crate) const fn empty_frame(more: bool) -> [u8; 2] {
    [if more { MORE } else { 0 }, 0]
}

/// The header of a message's last frame with a body of so many bytes.
pub(crate) fn last_header(length: usize) -> Vec<u8> {
    frame_header(0, length)
}

fn frame_header(flags: u8, length: usize) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(length) => vec![flags, length],
        Err(_) => [&[flags | LONG][..], &(length as u64).to_be_bytes()].concat(),
    }
}

/// A command with this body, as a frame.
pub(crate) fn command_frame(body: &[u8]) -> Vec<u8> {
    [&frame_header(COMMAND, body.len()), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUESTS: Direction = Direction::Requests { header: 100, payload: 1000, frames: 4 };
    const REPLIES: Direction = Direction::Replies { header: 100, payload: 1000, frames: 4 };

    fn frame(flags: u8, body: usize) -> Vec<u8> {
        let mut frame = vec![flags | LONG];
        frame.extend((body as u64).to_be_bytes());
        frame.resize(LONG_HEADER + body, b'x');
        frame
    }

    /// What a stream consists of: the bytes of bodies by what becomes of them, messages and commands.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Walked {
        passed: usize,
        payload: usize,
        dropped: usize,
        messages: usize,
        commands: usize,
    }

    /// Walks the bytes as they would come, `chunk` at a time.
    fn walk(direction: Direction, bytes: &[u8], chunk: usize) -> Result<Walked, CutOff> {
        let mut walker = FrameWalker::new(direction);
        let mut walked = Walked::default();
        let (mut at, mut end) = (0, 0);
        loop {
            match walker.step(&bytes[at..end])? {
                Step::Incomplete if end == bytes.len() => break,
                Step::Incomplete => end = (end + chunk).min(bytes.len()),
                Step::Frame { header, .. } => at += header,
                Step::Body { bytes, closes, content } => {
                    at += bytes;
                    *match content {
                        Content::Passes => &mut walked.passed,
                        Content::Payload => &mut walked.payload,
                        Content::Dropped => &mut walked.dropped,
                    } += bytes;
                    walked.messages += usize::from(closes);
                    assert_eq!(closes, walker.at_boundary());
                }
                Step::Command { bytes, .. } => {
                    at += bytes;
                    walked.commands += 1;
                }
            }
        }
        Ok(walked)
    }

    #[test]
    fn a_stream_is_read_the_same_however_it_is_cut() {
        let ping = command_frame(b"\x04PING\0\0");
        let stream =
            [frame(MORE, 100), frame(0, 1000), ping.clone(), vec![MORE, 0], ping, frame(0, 7)].concat();
        for chunk in 1..stream.len() {
            let expected =
                Walked { passed: 100, payload: 1007, messages: 2, commands: 2, ..Walked::default() };
            assert_eq!(walk(REPLIES, &stream, chunk).unwrap(), expected, "{chunk}");
        }
    }

    #[test]
    fn what_a_message_must_not_have_is_dropped() {
        let dropped = |passed, dropped| Walked { passed, dropped, messages: 1, ..Walked::default() };
        let plain = [frame(MORE, 100), frame(0, 1000)].concat();
        assert_eq!(walk(REQUESTS, &plain, 64).unwrap(), dropped(100, 1000));
        let delimited = [vec![MORE, 0], frame(MORE, 100), frame(MORE, 3), frame(0, 0)].concat();
        assert_eq!(walk(REQUESTS, &delimited, 64).unwrap(), dropped(100, 3));
        let reply = [frame(MORE, 100), frame(MORE, 50), frame(0, 3)].concat();
        assert_eq!(walk(REPLIES, &reply, 64).unwrap(), Walked { payload: 50, ..dropped(100, 3) });
    }

    #[test]
    fn every_limit_holds_before_a_byte_of_the_body_is_there() {
        let declared = |flags, length: u64| [&[flags | LONG][..], &length.to_be_bytes()].concat();
        for (direction, bytes) in [
            (REQUESTS, declared(0, 101)),
            (REQUESTS, [vec![MORE, 0], declared(0, 101)].concat()),
            (REPLIES, declared(0, 1 << 62)),
            (REPLIES, declared(MORE, u64::MAX)),
            (REPLIES, [frame(MORE, 100), declared(0, 1001)].concat()),
            (REPLIES, [frame(MORE, 100), frame(MORE, 900), declared(0, 101)].concat()),
            (REPLIES, [[MORE, 0].repeat(4), vec![0, 0]].concat()),
            (REPLIES, declared(COMMAND, 4097)),
        ] {
            assert!(matches!(walk(direction, &bytes, 64), Err(CutOff::Limit { .. })), "{bytes:?}");
        }
        for bytes in [vec![8], vec![0x80, 0], vec![COMMAND | MORE, 0]] {
            assert!(matches!(walk(REPLIES, &bytes, 64), Err(CutOff::Protocol(_))), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_or_refused(
            bytes in prop::collection::vec(prop_oneof![0u8..10, any::<u8>()], 0..400),
            chunk in 1usize..50,
        ) {
            for direction in [REQUESTS, REPLIES] {
                if let Ok(walked) = walk(direction, &bytes, chunk) {
                    prop_assert!(walked.passed + walked.payload + walked.dropped <= bytes.len());
                }
            }
        }
    }
}
