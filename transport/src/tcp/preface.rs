//! The preface: the first bytes of both sides, which detect other protocols.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::guard::disconnect::{Disconnect, OTHER_PROTOCOL};

/// No text, TLS or ZMTP stream starts with these bytes. The last byte is the framing version.
const PREFACE: [u8; 8] = *b"\x8aENJTCP\x01";

/// Sends the preface, and compares that of the remote byte by byte.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), Disconnect> {
    stream.write_all(&PREFACE).await?;
    stream.flush().await?;
    let mut theirs = [0; PREFACE.len()];
    let mut filled = 0;
    while filled < theirs.len() {
        let read = stream.read(&mut theirs[filled..]).await?;
        if read == 0 {
            return Err(Disconnect::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        filled += read;
        if theirs[..filled] != PREFACE[..filled] {
            let is_older_or_newer = theirs[..7] == PREFACE[..7];
            let version = Disconnect::Protocol("unsupported framing version");
            return Err(if is_older_or_newer { version } else { OTHER_PROTOCOL });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::duplex;
    use tokio::time::timeout;

    async fn receive(bytes: &[u8]) -> Result<(), Disconnect> {
        let (mut us, mut them) = duplex(64);
        them.write_all(bytes).await.unwrap();
        timeout(Duration::from_secs(1), exchange(&mut us)).await.expect("it needs no further byte")
    }

    #[tokio::test(start_paused = true)]
    async fn other_protocol_is_detected_at_the_first_byte() {
        assert!(receive(&PREFACE).await.is_ok());
        // The stream remains open, so the first different byte decides.
        for bytes in [&b"G"[..], b"\xff", b"\x16\x03\x01", b"\x8aENX"] {
            let error = receive(bytes).await.unwrap_err();
            assert_eq!(error.to_string(), OTHER_PROTOCOL.to_string());
        }
        let error = receive(b"\x8aENJTCP\x02").await.unwrap_err();
        assert!(matches!(error, Disconnect::Protocol("unsupported framing version")), "{error}");
    }

    #[tokio::test]
    async fn bytes_after_the_preface_remain_unread() {
        let (mut us, mut them) = duplex(64);
        them.write_all(&[&PREFACE[..], b"frame"].concat()).await.unwrap();
        exchange(&mut us).await.unwrap();
        let mut rest = [0; 5];
        us.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"frame");
    }
}
