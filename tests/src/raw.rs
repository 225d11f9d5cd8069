//! A client that writes protocol messages byte by byte, so that it can send invalid ones, from any loopback address.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
#[cfg(target_os = "linux")]
use std::net::{Ipv4Addr, SocketAddrV4};

use enjambre_core::RequestId;
use enjambre_core::protocol::codec::{decode_reply, encode_request};
use enjambre_core::protocol::error::ErrorReply;
use enjambre_core::protocol::message::{Reply, Request};
#[cfg(target_os = "linux")]
use rustix::net::sockopt::set_socket_recv_buffer_size;
#[cfg(target_os = "linux")]
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::wait::TIMEOUT;

/// The preface of a plain TCP connection.
pub const PREFACE: [u8; 8] = *b"\x8aENJTCP\x01";
/// The ZMTP flag of a frame that is not the last of its message.
pub const MORE: u8 = 1;
/// The ZMTP flag of a frame with a length of 8 bytes.
pub const LONG_FRAME: u8 = 2;
/// The ZMTP flag of a command.
pub const COMMAND: u8 = 4;

/// The maximum size in bytes of a received header, payload or frame.
const MAX_SIZE: u64 = 4 << 20;

/// The encoding of messages on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// ZMTP 3.0, <https://rfc.zeromq.org/spec/23/>.
    Zmtp,
    /// The lengths of header and payload, followed by both.
    Plain,
}

/// A connection for arbitrary bytes.
#[derive(Debug)]
pub struct RawConnection {
    /// The underlying stream.
    pub stream: TcpStream,
    framing: Framing,
}

/// Returns the ZMTP greeting.
pub fn zmtp_greeting() -> [u8; 64] {
    let mut bytes = [0; 64];
    (bytes[0], bytes[9], bytes[10]) = (0xff, 0x7f, 3);
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

fn ready() -> Vec<u8> {
    let property = |name: &[u8], value: &[u8]| {
        [&[name.len() as u8][..], name, &(value.len() as u32).to_be_bytes(), value].concat()
    };
    zmtp_frame(COMMAND, &[b"\x05READY", &property(b"Socket-Type", b"DEALER")[..]].concat())
}

fn zmtp_frame(flags: u8, body: &[u8]) -> Vec<u8> {
    match u8::try_from(body.len()) {
        Ok(length) => [&[flags, length][..], body].concat(),
        Err(_) => [&[flags | LONG_FRAME][..], &(body.len() as u64).to_be_bytes(), body].concat(),
    }
}

/// Returns the address of an endpoint, without its scheme and node id.
fn address_of(endpoint: &str) -> &str {
    let (_, rest) = endpoint.split_once("://").expect("an endpoint has a scheme");
    rest.split_once('@').map_or(rest, |(_, address)| address)
}

impl RawConnection {
    fn new(endpoint: &str, stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).expect("cannot set a socket timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("cannot set a socket timeout");
        Self { stream, framing: if endpoint.starts_with("tcp") { Framing::Plain } else { Framing::Zmtp } }
    }

    /// Opens a connection without a handshake.
    ///
    /// # Panics
    /// Panics if the connection is refused.
    #[track_caller]
    pub fn connect(endpoint: &str) -> Self {
        Self::new(endpoint, TcpStream::connect(address_of(endpoint)).expect("cannot connect"))
    }

    /// Opens a connection from a loopback address without a handshake, optionally with a receive buffer of this many bytes.
    ///
    /// # Errors
    /// Returns an error if the connection is refused.
    ///
    /// # Panics
    /// Panics if the endpoint has no IPv4 address.
    #[cfg(target_os = "linux")]
    pub fn connect_from(endpoint: &str, from: Ipv4Addr, receive_buffer: Option<usize>) -> io::Result<Self> {
        // Close-on-exec, so that processes started by the test do not keep the connection open.
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        if let Some(size) = receive_buffer {
            set_socket_recv_buffer_size(&socket, size)?;
        }
        bind(&socket, &SocketAddrV4::new(from, 0))?;
        let to: SocketAddrV4 = address_of(endpoint).parse().expect("an IPv4 address");
        connect(&socket, &to)?;
        Ok(Self::new(endpoint, socket.into()))
    }

    /// Opens a connection that is ready for requests.
    ///
    /// # Panics
    /// Panics if the handshake fails.
    #[track_caller]
    pub fn connect_and_handshake(endpoint: &str) -> Self {
        let mut raw = Self::connect(endpoint);
        raw.handshake().expect("the handshake failed");
        raw
    }

    /// Returns the bytes that a client sends before its first message.
    pub fn handshake_bytes(&self) -> Vec<u8> {
        match self.framing {
            Framing::Plain => PREFACE.to_vec(),
            Framing::Zmtp => [&zmtp_greeting()[..], &ready()].concat(),
        }
    }

    /// Performs the handshake.
    ///
    /// # Errors
    /// Returns an error if the peer closes the connection.
    ///
    /// # Panics
    /// Panics if the peer sends an invalid handshake.
    pub fn handshake(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.handshake_bytes())?;
        match self.framing {
            Framing::Plain => {
                let mut preface = [0; PREFACE.len()];
                self.stream.read_exact(&mut preface)?;
                assert_eq!(preface, PREFACE);
            }
            Framing::Zmtp => {
                self.stream.read_exact(&mut [0; 64])?;
                let (flags, body) = self.read_frame()?;
                assert!(flags & COMMAND != 0 && body.starts_with(b"\x05READY"));
            }
        }
        Ok(())
    }

    /// Sends a ZMTP frame.
    ///
    /// # Errors
    /// Returns an error if the connection is closed or the write times out.
    pub fn send_frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        self.stream.write_all(&zmtp_frame(flags, body))
    }

    /// Encodes a message with this header and no payload.
    pub fn encode_message(&self, header: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Zmtp => zmtp_frame(0, header),
            Framing::Plain => {
                let lengths = [header.len() as u32, 0].map(u32::to_be_bytes).concat();
                [&lengths, header].concat()
            }
        }
    }

    /// Sends a message with this header, valid or not, and no payload.
    ///
    /// # Errors
    /// Returns the errors of [`RawConnection::send_frame`].
    pub fn send_header(&mut self, header: &[u8]) -> io::Result<()> {
        self.stream.write_all(&self.encode_message(header))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Returns the errors of [`RawConnection::send_frame`].
    pub fn send_request(&mut self, id: u64, request: &Request) -> io::Result<()> {
        self.send_header(&encode_request(RequestId(id), request))
    }

    fn read_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let [flags] = self.read_array()?;
        let length = if flags & LONG_FRAME == 0 {
            let [length] = self.read_array()?;
            u64::from(length)
        } else {
            u64::from_be_bytes(self.read_array()?)
        };
        Ok((flags, self.read_bytes(length)?))
    }

    fn read_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn read_bytes(&mut self, length: u64) -> io::Result<Vec<u8>> {
        assert!(length <= MAX_SIZE, "{length} bytes exceed the maximum size");
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the header and the payload of the next message.
    ///
    /// # Errors
    /// Returns an error if the connection is closed or the read times out.
    ///
    /// # Panics
    /// Panics if the received bytes are not a valid message.
    pub fn read_message(&mut self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        if self.framing == Framing::Plain {
            let [header, payload] = [self.read_array()?, self.read_array()?].map(u32::from_be_bytes);
            return Ok((self.read_bytes(header.into())?, self.read_bytes(payload.into())?));
        }
        let (flags, header) = self.read_frame()?;
        assert_eq!(flags & COMMAND, 0);
        if flags & MORE == 0 {
            return Ok((header, Vec::new()));
        }
        let (flags, payload) = self.read_frame()?;
        assert_eq!(flags & (MORE | COMMAND), 0);
        Ok((header, payload))
    }

    /// Reads the next reply.
    ///
    /// # Panics
    /// Panics if no valid reply arrives.
    #[track_caller]
    pub fn read_reply(&mut self) -> Result<Reply, ErrorReply> {
        let (header, _) = self.read_message().expect("cannot read a reply");
        decode_reply(&header).expect("malformed reply")
    }

    /// Waits until the peer closes the connection.
    ///
    /// # Panics
    /// Panics if the peer does not close the connection before the timeout.
    #[track_caller]
    pub fn wait_closed(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the connection is not closed: {error}"),
            }
        }
    }
}
