//! The ZMTP 3.0 handshake with the mechanism NULL (RFC 23).
//!
//! The handshake bytes of the remote do not reach the `zeromq` crate: the guard checks the READY of the remote, and performs
//! a separate handshake with the crate, with a routing identity chosen by this side.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::disconnect::{Disconnect, OTHER_PROTOCOL};
use super::frame::{Direction, FrameParser, Step, command_frame};

const GREETING: usize = 64;
const MECHANISM: std::ops::Range<usize> = 12..32;

/// The properties of a ZeroMQ socket in its READY command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketInfo<'a> {
    /// `ROUTER` or `DEALER`.
    pub(crate) socket_type: &'static str,
    /// The routing identity, or empty for none.
    pub(crate) identity: &'a [u8],
}

fn greeting() -> [u8; GREETING] {
    let mut greeting = [0; GREETING];
    // Signature, version 3.0, mechanism.
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[MECHANISM][..4].copy_from_slice(b"NULL");
    greeting
}

fn check_greeting(greeting: &[u8; GREETING]) -> Result<(), Disconnect> {
    if greeting[0] != 0xff || greeting[9] & 1 == 0 {
        return Err(OTHER_PROTOCOL);
    }
    if greeting[10] < 3 {
        return Err(Disconnect::Protocol("unsupported ZMTP version, below 3.0"));
    }
    let mechanism = &greeting[MECHANISM];
    if !mechanism.starts_with(b"NULL") || mechanism[4..].iter().any(|byte| *byte != 0) {
        return Err(Disconnect::Protocol("the security mechanism is not NULL"));
    }
    Ok(())
}

fn ready(socket: SocketInfo<'_>) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    let mut property = |name: &str, value: &[u8]| {
        body.push(u8::try_from(name.len()).expect("property names are short"));
        body.extend(name.as_bytes());
        body.extend(u32::try_from(value.len()).expect("property values are short").to_be_bytes());
        body.extend(value);
    };
    property("Socket-Type", socket.socket_type.as_bytes());
    if !socket.identity.is_empty() {
        property("Identity", socket.identity);
    }
    command_frame(&body)
}

/// Returns the socket type in the body of a READY command.
fn socket_type(body: &[u8]) -> Result<&[u8], Disconnect> {
    const MALFORMED: Disconnect = Disconnect::Protocol("malformed READY command");
    let mut rest =
        body.strip_prefix(b"\x05READY").ok_or(Disconnect::Protocol("the first command is not READY"))?;
    let mut found = None;
    while let Some((&length, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(length)).ok_or(MALFORMED)?;
        let (length, after) = after.split_first_chunk::<4>().ok_or(MALFORMED)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| MALFORMED)?;
        let (value, after) = after.split_at_checked(length).ok_or(MALFORMED)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = Some(value);
        }
        rest = after;
    }
    found.ok_or(Disconnect::Protocol("the READY command has no socket type"))
}

/// Performs the handshake. The other side must be a socket of one of the `expected` types.
pub(crate) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    socket: SocketInfo<'_>,
    expected: &[&str],
) -> Result<(), Disconnect> {
    let mut message = greeting().to_vec();
    message.extend(ready(socket));
    stream.write_all(&message).await?;
    stream.flush().await?;
    let mut theirs = [0; GREETING];
    // The first byte detects another protocol. Its client may send only a short line and wait for a reply.
    stream.read_exact(&mut theirs[..1]).await?;
    if theirs[0] != 0xff {
        return Err(OTHER_PROTOCOL);
    }
    stream.read_exact(&mut theirs[1..]).await?;
    check_greeting(&theirs)?;

    // Reads no byte after READY, which belongs to the splice.
    let mut frame = Vec::with_capacity(128);
    let mut parser = FrameParser::new(Direction::Own);
    loop {
        match parser.step(&frame)? {
            Step::Incomplete { missing } => {
                let have = frame.len();
                frame.resize(have + missing, 0);
                stream.read_exact(&mut frame[have..]).await?;
            }
            Step::Command { body, .. } => {
                let theirs = socket_type(&frame[body])?;
                if !expected.iter().any(|kind| kind.as_bytes() == theirs) {
                    return Err(Disconnect::Protocol("incompatible socket type"));
                }
                return Ok(());
            }
            Step::Frame { .. } | Step::Body { .. } => {
                return Err(Disconnect::Protocol("message before READY"));
            }
        }
    }
}

/// Returns the reply to a command: PONG with the context of a PING, and none to any other command.
pub(crate) fn answer(command: &[u8]) -> Option<Vec<u8>> {
    // PING, time to live (2 bytes), context (up to 16 bytes), see RFC 37.
    let context = command.strip_prefix(b"\x04PING")?.get(2..)?;
    let context = &context[..context.len().min(16)];
    Some(command_frame(&[b"\x04PONG", context].concat()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;
    use tokio::time::timeout;

    const ROUTER: SocketInfo<'_> = SocketInfo { socket_type: "ROUTER", identity: b"" };
    const DEALER: SocketInfo<'_> = SocketInfo { socket_type: "DEALER", identity: b"me" };

    #[tokio::test]
    async fn handshake_succeeds_between_compatible_sockets() {
        let (mut one, mut other) = tokio::io::duplex(4096);
        let (first, second) = tokio::join!(
            async {
                shake_hands(&mut one, DEALER, &["ROUTER"]).await?;
                one.write_all(b"more").await.map_err(Disconnect::from)
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
        assert!(matches!(refused, Err(Disconnect::Protocol(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn other_protocol_is_detected_at_the_first_byte() {
        for bytes in [&b"\x8aENJTCP\x01"[..], b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x03"] {
            let (mut one, mut other) = tokio::io::duplex(4096);
            other.write_all(bytes).await.unwrap();
            let refused = timeout(Duration::from_secs(1), shake_hands(&mut one, DEALER, &["ROUTER"])).await;
            let error = refused.expect("it needs no further byte").unwrap_err().to_string();
            assert!(error.contains("check the scheme and the port"), "{error}");
        }
    }

    #[test]
    fn only_ping_is_answered() {
        assert_eq!(answer(b"\x04PING\x00\x00ctx").unwrap(), command_frame(b"\x04PONGctx"));
        assert_eq!(answer(b"\x04PING\x00\x00").unwrap(), command_frame(b"\x04PONG"));
        let long = [&b"\x04PING\x00\x00"[..], &[7; 100]].concat();
        assert_eq!(answer(&long).unwrap().len(), 2 + 5 + 16, "a context has at most 16 bytes");
        for other in [&b""[..], b"\x04PING\x00", b"\x04PONG\x00\x00", b"PING\x00\x00"] {
            assert_eq!(answer(other), None);
        }
    }

    proptest! {
        #[test]
        fn any_ready_is_accepted_or_rejected(body in prop::collection::vec(any::<u8>(), 0..200)) {
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
