//! The first bytes of a connection, the same from both sides: they tell who speaks something else.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::guard::cutoff::CutOff;

/// No text, no TLS and no ZMTP begins so. The last byte is the version of the framing.
const PREFACE: [u8; 8] = *b"\x8aENJTCP\x01";

/// Says who we are, and checks who they are; as soon as a byte differs, before the others came.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), CutOff> {
    stream.write_all(&PREFACE).await?;
    stream.flush().await?;
    let mut theirs = [0; PREFACE.len()];
    let mut have = 0;
    while have < theirs.len() {
        let read = stream.read(&mut theirs[have..]).await?;
        if read == 0 {
            return Err(CutOff::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        have += read;
        if theirs[..have] != PREFACE[..have] {
            let problem = if theirs[..7] == PREFACE[..7] {
                "it speaks another version of the framing"
            } else {
                "it does not begin with the preface"
            };
            return Err(CutOff::Protocol(problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    async fn said(bytes: &[u8]) -> Result<(), CutOff> {
        let (mut us, mut them) = duplex(64);
        them.write_all(bytes).await.unwrap();
        exchange(&mut us).await
    }

    #[tokio::test]
    async fn who_speaks_something_else_is_told_apart_at_the_first_byte() {
        assert!(said(&PREFACE).await.is_ok());
        // None of them closes: a byte is enough.
        for bytes in [&b"G"[..], b"\xff", b"\x16\x03\x01", b"\x8aENX"] {
            let error = said(bytes).await.unwrap_err();
            assert!(matches!(error, CutOff::Protocol("it does not begin with the preface")), "{error}");
        }
        let error = said(b"\x8aENJTCP\x02").await.unwrap_err();
        assert!(matches!(error, CutOff::Protocol("it speaks another version of the framing")), "{error}");
    }

    #[tokio::test]
    async fn what_follows_the_preface_is_left_to_the_reader() {
        let (mut us, mut them) = duplex(64);
        them.write_all(&[&PREFACE[..], b"frame"].concat()).await.unwrap();
        exchange(&mut us).await.unwrap();
        let mut rest = [0; 5];
        us.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"frame");
    }
}
