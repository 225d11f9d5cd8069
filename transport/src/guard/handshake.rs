//! The ZMTP 3.0 handshake with the mechanism NULL (RFC 23), towards either side.
//!
//! Nothing that the remote says here reaches the crate: the guard reads the remote's READY, checks it, and speaks a
//! handshake of its own with the crate, with the routing identity that this side chose.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::cutoff::CutOff;
use super::frame::{Direction, FrameWalker, MAX_COMMAND, Step, command_frame};

const GREETING: usize = 64;
const MECHANISM: std::ops::Range<usize> = 12..32;

/// What a node at one end of a stream says about itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Introduction<'a> {
    /// `ROUTER` or `DEALER`.
    pub(crate) socket_type: &'static str,
    /// The routing identity; none where it is empty.
    pub(crate) identity: &'a [u8],
}

fn greeting() -> [u8; GREETING] {
    let mut greeting = [0; GREETING];
    // Signature, version 3.0, mechanism.
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[MECHANISM][..4].copy_from_slice(b"NULL");
    greeting
}

fn check_greeting(greeting: &[u8; GREETING]) -> Result<(), CutOff> {
    if greeting[0] != 0xff || greeting[9] & 1 == 0 {
        return Err(CutOff::Protocol("its greeting has another signature"));
    }
    if greeting[10] < 3 {
        return Err(CutOff::Protocol("it speaks a version of ZMTP below 3.0"));
    }
    let mechanism = &greeting[MECHANISM];
    if !mechanism.starts_with(b"NULL") || mechanism[4..].iter().any(|byte| *byte != 0) {
        return Err(CutOff::Protocol("its security mechanism is not NULL"));
    }
    Ok(())
}

fn ready(introduction: Introduction<'_>) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    let mut property = |name: &str, value: &[u8]| {
        body.push(u8::try_from(name.len()).expect("the names of properties are short"));
        body.extend(name.as_bytes());
        body.extend(u32::try_from(value.len()).expect("their values, too").to_be_bytes());
        body.extend(value);
    };
    property("Socket-Type", introduction.socket_type.as_bytes());
    if !introduction.identity.is_empty() {
        property("Identity", introduction.identity);
    }
    command_frame(&body)
}

/// The socket type in the body of a READY command.
fn socket_type(body: &[u8]) -> Result<&[u8], CutOff> {
    const BROKEN: CutOff = CutOff::Protocol("its READY is not well formed");
    let mut rest = body.strip_prefix(b"\x05READY").ok_or(CutOff::Protocol("it did not send READY"))?;
    let mut found = None;
    while let Some((&length, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(length)).ok_or(BROKEN)?;
        let (length, after) = after.split_first_chunk::<4>().ok_or(BROKEN)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| BROKEN)?;
        let (value, after) = after.split_at_checked(length).ok_or(BROKEN)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = Some(value);
        }
        rest = after;
    }
    found.ok_or(CutOff::Protocol("its READY names no socket type"))
}

/// Greets the other end of a stream, which must be a socket of one of the `expected` types.
pub(crate) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    introduction: Introduction<'_>,
    expected: &[&str],
) -> Result<(), CutOff> {
    let mut hello = greeting().to_vec();
    hello.extend(ready(introduction));
    stream.write_all(&hello).await?;
    let mut theirs = [0; GREETING];
    // The first byte tells who speaks something else, before they wait for an answer to a short line.
    stream.read_exact(&mut theirs[..1]).await?;
    if theirs[0] != 0xff {
        return Err(CutOff::Protocol("its greeting has another signature"));
    }
    stream.read_exact(&mut theirs[1..]).await?;
    check_greeting(&theirs)?;

    // Byte by byte up to the end of READY, to leave what follows to the splice; READY comes once and is short.
    let mut frame = Vec::with_capacity(128);
    let mut walker = FrameWalker::new(Direction::Own);
    loop {
        let missing = missing(&frame)?;
        let have = frame.len();
        frame.resize(have + missing, 0);
        stream.read_exact(&mut frame[have..]).await?;
        match walker.step(&frame)? {
            Step::Incomplete => {}
            Step::Command { body, .. } => {
                let theirs = socket_type(&frame[body])?;
                if !expected.iter().any(|kind| kind.as_bytes() == theirs) {
                    return Err(CutOff::Protocol("its socket type does not fit"));
                }
                return Ok(());
            }
            Step::Frame { .. } | Step::Body { .. } => {
                return Err(CutOff::Protocol("it sent a message before READY"));
            }
        }
    }
}

/// How many bytes of a command's frame are certainly still to come.
fn missing(frame: &[u8]) -> Result<usize, CutOff> {
    let long = frame.first().is_some_and(|flags| flags & 0b010 != 0);
    let header = if long { 9 } else { 2 };
    if frame.len() < header {
        // The shortest frame has two bytes.
        return Ok(if frame.is_empty() { 2 } else { header - frame.len() });
    }
    let length = frame[1..header].iter().fold(0u64, |length, byte| (length << 8) | u64::from(*byte));
    if length > MAX_COMMAND as u64 {
        return Err(CutOff::Limit { what: "command", limit: MAX_COMMAND as u64, actual: length });
    }
    Ok(usize::try_from(length).unwrap_or(MAX_COMMAND) + header - frame.len())
}

/// The answer to a command: PONG with its context to a PING, nothing to any other.
pub(crate) fn answer(command: &[u8]) -> Option<Vec<u8>> {
    // PING, two bytes of time to live, context of up to 16 bytes (RFC 37).
    let context = command.strip_prefix(b"\x04PING")?.get(2..)?;
    let context = &context[..context.len().min(16)];
    Some(command_frame(&[b"\x04PONG", context].concat()))
}
