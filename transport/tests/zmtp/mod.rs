//! ZMTP 3 by hand, for tests that must send what no library sends.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The flag of a frame that is not the last of its message.
pub(crate) const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// 64 bytes of greeting, of version 3.1 as libzmq sends it.
pub(crate) fn greeting(major: u8, mechanism: &[u8]) -> Vec<u8> {
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, major, 1);
    greeting[12..12 + mechanism.len()].copy_from_slice(mechanism);
    greeting
}

/// A READY command.
pub(crate) fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
        body.push(u8::try_from(name.len()).unwrap());
        body.extend(name.as_bytes());
        body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(value);
    }
    command(&body)
}

/// The header of a long frame.
pub(crate) fn long_header(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | LONG][..], &length.to_be_bytes()].concat()
}

/// A frame.
pub(crate) fn framed(flags: u8, body: &[u8]) -> Vec<u8> {
    match u8::try_from(body.len()) {
        Ok(length) => [&[flags, length][..], body].concat(),
        Err(_) => [&long_header(flags, body.len() as u64), body].concat(),
    }
}

/// A command with this body.
pub(crate) fn command(body: &[u8]) -> Vec<u8> {
    framed(COMMAND, body)
}

/// What comes next over a connection.
#[derive(Debug)]
pub(crate) enum Next {
    /// The frames of a message.
    Message(Vec<Bytes>),
    /// The body of a command.
    Command(Vec<u8>),
}

/// A connection after the handshake.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
}

impl Raw {
    pub(crate) async fn connect(address: &str, socket_type: &str, identity: &[u8]) -> Self {
        Self::try_connect(address, socket_type, identity).await.unwrap()
    }

    pub(crate) async fn try_connect(address: &str, socket_type: &str, identity: &[u8]) -> io::Result<Self> {
        Self::greet(TcpStream::connect(address).await?, socket_type, identity).await
    }

    pub(crate) async fn greet(mut stream: TcpStream, socket_type: &str, identity: &[u8]) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // In pieces, as libzmq does.
        let greeting = greeting(3, b"NULL");
        stream.write_all(&greeting[..10]).await?;
        stream.write_all(&greeting[10..]).await?;
        let mut theirs = [0; 64];
        stream.read_exact(&mut theirs).await?;
        assert_eq!(theirs[..12], [0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0]);
        stream.write_all(&ready(socket_type, identity)).await?;
        let mut raw = Self { stream };
        let theirs = raw.try_command().await?;
        assert!(theirs.starts_with(b"\x05READY"));
        Ok(raw)
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn frame(&mut self, flags: u8, body: &[u8]) {
        self.try_frame(flags, body).await.unwrap();
    }

    pub(crate) async fn try_frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        self.stream.write_all(&framed(flags, body)).await
    }

    async fn read_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let flags = self.stream.read_u8().await?;
        let length = if flags & LONG == 0 {
            u64::from(self.stream.read_u8().await?)
        } else {
            self.stream.read_u64().await?
        };
        let mut body = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut body).await?;
        Ok((flags, body))
    }

    pub(crate) async fn next(&mut self) -> Next {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.read_frame().await.unwrap();
            if flags & COMMAND != 0 {
                assert!(frames.is_empty(), "a command within a message");
                return Next::Command(body);
            }
            frames.push(Bytes::from(body));
            if flags & MORE == 0 {
                return Next::Message(frames);
            }
        }
    }

    pub(crate) async fn message(&mut self) -> Vec<Bytes> {
        match self.next().await {
            Next::Message(frames) => frames,
            Next::Command(body) => panic!("a command: {body:?}"),
        }
    }

    async fn try_command(&mut self) -> io::Result<Vec<u8>> {
        let (flags, body) = self.read_frame().await?;
        assert_eq!(flags & COMMAND, COMMAND);
        Ok(body)
    }

    pub(crate) async fn command(&mut self) -> Vec<u8> {
        self.try_command().await.unwrap()
    }
}
