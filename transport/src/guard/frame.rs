//! An incremental parser for ZMTP 3.0 frames (RFC 23, "Framing").
//!
//! The parser stores no bytes: it gets the available bytes and returns the next step, and the caller repeats incomplete
//! bytes. The declared length of a frame is checked before its body is read.

use std::ops::Range;

use super::disconnect::Disconnect;

/// Maximum size of a command in bytes. READY and PING are far smaller.
pub(crate) const MAX_COMMAND: usize = 4096;
/// The sizes of a frame header: flags, and a length of 1 or 8 bytes.
const SHORT_HEADER: usize = 2;
const LONG_HEADER: usize = 9;

const MORE: u8 = 0b001;
const LONG: u8 = 0b010;
const COMMAND: u8 = 0b100;

/// The messages of a stream, with their limits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// From a client: an optional empty delimiter, and a header. Further frames make a request malformed.
    Requests { header: u64, payload: u64, frames: usize },
    /// From a server: a header and an optional payload. Further frames make a reply invalid.
    Replies { header: u64, payload: u64, frames: usize },
    /// From this program: parsed only to find the ends of messages.
    Own,
}

/// The handling of the body of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Forwarded unchanged.
    Forwarded,
    /// A payload, which bypasses the `zeromq` crate.
    Payload,
    /// Discarded.
    Dropped,
}

/// The next step in a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// At least this number of bytes is missing.
    Incomplete { missing: usize },
    /// A frame header of `header` bytes, and the length of the following body.
    Frame { header: usize, body: u64, opens: bool, more: bool, content: Content },
    /// Bytes of the body of a frame. `closes` is set at the end of a message.
    Body { bytes: usize, closes: bool, content: Content },
    /// A complete command of `bytes` bytes, and the range of its body.
    Command { bytes: usize, body: Range<usize> },
}

#[derive(Debug)]
pub(crate) struct FrameParser {
    direction: Direction,
    /// The remaining bytes of the body of the current frame; `None` between frames.
    body: Option<u64>,
    more: bool,
    content: Content,
    /// Of the current message: number of frames, declared bytes, and whether the first frame is an empty delimiter.
    frames: usize,
    total: u64,
    delimited: bool,
}

impl FrameParser {
    pub(crate) const fn new(direction: Direction) -> Self {
        let content = Content::Forwarded;
        Self { direction, body: None, more: false, content, frames: 0, total: 0, delimited: false }
    }

    /// Returns whether the stream is between two messages.
    pub(crate) const fn at_boundary(&self) -> bool {
        self.body.is_none() && self.frames == 0
    }

    /// Parses the next step from the start of `bytes`.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, Disconnect> {
        match self.body {
            Some(left) => Ok(self.body(left, bytes.len())),
            None => self.header(bytes),
        }
    }

    /// Skips the body of the current frame. Returns whether the message ends with it.
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
            return Step::Incomplete { missing: 1 };
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

    fn header(&mut self, bytes: &[u8]) -> Result<Step, Disconnect> {
        let flags = bytes.first().copied().unwrap_or_default();
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(Disconnect::Protocol("reserved frame flags are set"));
        }
        let header = if flags & LONG == 0 { SHORT_HEADER } else { LONG_HEADER };
        let Some(length) = bytes.get(1..header) else {
            return Ok(Step::Incomplete { missing: header - bytes.len() });
        };
        let body = length.iter().fold(0, |length, byte| (length << 8) | u64::from(*byte));
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

    // libzmq sends a PING between any two frames, so a command can occur within a message.
    fn command(bytes: &[u8], header: usize, body: u64, more: bool) -> Result<Step, Disconnect> {
        if more {
            return Err(Disconnect::Protocol("a command has the flag MORE"));
        }
        Disconnect::check_limit("command", MAX_COMMAND as u64, body)?;
        let end = header + usize::try_from(body).unwrap_or(MAX_COMMAND);
        if bytes.len() < end {
            return Ok(Step::Incomplete { missing: end - bytes.len() });
        }
        Ok(Step::Command { bytes: end, body: header..end })
    }

    /// Checks the limits of the next frame, and returns its handling.
    fn check(&self, body: u64) -> Result<Content, Disconnect> {
        let (header, payload, frames) = match self.direction {
            Direction::Own => return Ok(Content::Forwarded),
            Direction::Requests { header, payload, frames }
            | Direction::Replies { header, payload, frames } => (header, payload, frames),
        };
        Disconnect::check_limit(
            "number of frames (transport.limits.frames)",
            frames as u64,
            self.frames as u64 + 1,
        )?;
        Disconnect::check_limit("message", header.saturating_add(payload), self.total.saturating_add(body))?;
        let is_request = matches!(self.direction, Direction::Requests { .. });
        if self.frames == 0 || is_request && self.frames == 1 && self.delimited {
            Disconnect::check_limit("header size (transport.limits.header)", header, body)?;
            return Ok(Content::Forwarded);
        }
        Disconnect::check_limit("payload size (transport.limits.payload)", payload, body)?;
        Ok(if self.frames == 1 && !is_request { Content::Payload } else { Content::Dropped })
    }
}

/// Returns the header of an empty frame.
pub(crate) const fn empty_frame(more: bool) -> [u8; 2] {
    [if more { MORE } else { 0 }, 0]
}

/// Returns the header of the last frame of a message.
pub(crate) fn last_header(length: usize) -> Vec<u8> {
    frame_header(0, length)
}

fn frame_header(flags: u8, length: usize) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(length) => vec![flags, length],
        Err(_) => [&[flags | LONG][..], &(length as u64).to_be_bytes()].concat(),
    }
}

/// Returns a command frame with this body.
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

    /// The contents of a stream: the bytes of bodies by their handling, and the numbers of messages and commands.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Parsed {
        forwarded: usize,
        payload: usize,
        dropped: usize,
        messages: usize,
        commands: usize,
    }

    /// Parses the bytes as they arrive, `chunk` at a time.
    fn parse(direction: Direction, bytes: &[u8], chunk: usize) -> Result<Parsed, Disconnect> {
        let mut parser = FrameParser::new(direction);
        let mut parsed = Parsed::default();
        let (mut at, mut end) = (0, 0);
        loop {
            match parser.step(&bytes[at..end])? {
                Step::Incomplete { .. } if end == bytes.len() => break,
                Step::Incomplete { .. } => end = (end + chunk).min(bytes.len()),
                Step::Frame { header, .. } => at += header,
                Step::Body { bytes, closes, content } => {
                    at += bytes;
                    *match content {
                        Content::Forwarded => &mut parsed.forwarded,
                        Content::Payload => &mut parsed.payload,
                        Content::Dropped => &mut parsed.dropped,
                    } += bytes;
                    parsed.messages += usize::from(closes);
                    assert_eq!(closes, parser.at_boundary());
                }
                Step::Command { bytes, .. } => {
                    at += bytes;
                    parsed.commands += 1;
                }
            }
        }
        Ok(parsed)
    }

    #[test]
    fn chunk_size_does_not_change_the_result() {
        let ping = command_frame(b"\x04PING\0\0");
        let stream =
            [frame(MORE, 100), frame(0, 1000), ping.clone(), vec![MORE, 0], ping, frame(0, 7)].concat();
        for chunk in 1..stream.len() {
            let expected =
                Parsed { forwarded: 100, payload: 1007, messages: 2, commands: 2, ..Parsed::default() };
            assert_eq!(parse(REPLIES, &stream, chunk).unwrap(), expected, "{chunk}");
        }
    }

    #[test]
    fn surplus_frames_are_dropped() {
        let dropped = |forwarded, dropped| Parsed { forwarded, dropped, messages: 1, ..Parsed::default() };
        let plain = [frame(MORE, 100), frame(0, 1000)].concat();
        assert_eq!(parse(REQUESTS, &plain, 64).unwrap(), dropped(100, 1000));
        let delimited = [vec![MORE, 0], frame(MORE, 100), frame(MORE, 3), frame(0, 0)].concat();
        assert_eq!(parse(REQUESTS, &delimited, 64).unwrap(), dropped(100, 3));
        let reply = [frame(MORE, 100), frame(MORE, 50), frame(0, 3)].concat();
        assert_eq!(parse(REPLIES, &reply, 64).unwrap(), Parsed { payload: 50, ..dropped(100, 3) });
    }

    #[test]
    fn limits_are_checked_before_the_body_arrives() {
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
            assert!(
                matches!(parse(direction, &bytes, 64), Err(Disconnect::LimitExceeded { .. })),
                "{bytes:?}"
            );
        }
        for bytes in [vec![8], vec![0x80, 0], vec![COMMAND | MORE, 0]] {
            assert!(matches!(parse(REPLIES, &bytes, 64), Err(Disconnect::Protocol(_))), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_rejected(
            bytes in prop::collection::vec(prop_oneof![0u8..10, any::<u8>()], 0..400),
            chunk in 1usize..50,
        ) {
            for direction in [REQUESTS, REPLIES] {
                if let Ok(parsed) = parse(direction, &bytes, chunk) {
                    prop_assert!(parsed.forwarded + parsed.payload + parsed.dropped <= bytes.len());
                }
            }
        }
    }
}
