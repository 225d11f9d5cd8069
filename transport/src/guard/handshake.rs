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
    stream.flush().await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUTER: Introduction<'_> = Introduction { socket_type: "ROUTER", identity: b"" };
    const DEALER: Introduction<'_> = Introduction { socket_type: "DEALER", identity: b"me" };

    #[tokio::test]
    async fn two_that_fit_greet_each_other_and_leave_what_follows() {
        let (mut one, mut other) = tokio::io::duplex(4096);
        let (first, second) = tokio::join!(
            async {
                shake_hands(&mut one, DEALER, &["ROUTER"]).await?;
                one.write_all(b"more").await.map_err(CutOff::from)
            },
            shake_hands(&mut other, ROUTER, &["REQ", "DEALER"])
        );
        first.unwrap();
        second.unwrap();
        let mut rest = [0; 4];
        other.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"more");
        let (mut one, mut other) = tokio::io::duplex(4096);
        let (refused, _) = tokio::join!(
            shake_hands(&mut one, DEALER, &["REP"]),
            shake_hands(&mut other, ROUTER, &["DEALER"])
        );
        assert!(matches!(refused, Err(CutOff::Protocol(_))));
    }

    #[test]
    fn a_ping_is_answered_with_its_context_and_nothing_else_is() {
        assert_eq!(answer(b"\x04PING\x00\x00ctx").unwrap(), command_frame(b"\x04PONGctx"));
        assert_eq!(answer(b"\x04PING\x00\x00").unwrap(), command_frame(b"\x04PONG"));
        let long = [&b"\x04PING\x00\x00"[..], &[7; 100]].concat();
        assert_eq!(answer(&long).unwrap().len(), 2 + 5 + 16, "contexts have 16 bytes at most");
        for other in [&b""[..], b"\x04PING\x00", b"\x04PONG\x00\x00", b"PING\x00\x00"] {
            assert_eq!(answer(other), None);
        }
    }

    proptest! {
        #[test]
        fn any_ready_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = socket_type(&[&b"\x05READY"[..], &body].concat());
            let _ = socket_type(&body);
        }

        #[test]
        fn any_bytes_end_the_handshake(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut one, mut other) = tokio::io::duplex(4096);
                other.write_all(&[greeting().to_vec(), bytes].concat()).await.unwrap();
                other.shutdown().await.unwrap();
                let _ = shake_hands(&mut one, ROUTER, &["DEALER"]).await;
            });
        }
    }
}
