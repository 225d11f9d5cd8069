//! A client that speaks the wire by hand, byte by byte, so that it can break every rule, from any address of this machine.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
#[cfg(target_os = "linux")]
use std::net::{Ipv4Addr, SocketAddrV4};

use enjambre_core::protocol::codec::{decode_reply, encode_request};
use enjambre_core::protocol::error::ErrorReply;
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::transport::envelope::RequestId;
#[cfg(target_os = "linux")]
use rustix::net::sockopt::set_socket_recv_buffer_size;
#[cfg(target_os = "linux")]
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::wait::LONG;

/// How a plain TCP connection begins.
pub const PREFACE: [u8; 8] = *b"\x8aENJTCP\x01";
/// The flag of a ZMTP frame that is not the last of its message.
pub const MORE: u8 = 1;
/// The flag of a ZMTP frame with 8 bytes of length.
pub const LONG_FRAME: u8 = 2;
/// The flag of a ZMTP command.
pub const COMMAND: u8 = 4;

/// The most bytes of a message that are read.
const LARGEST: u64 = 4 << 20;

/// How messages lie on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// ZMTP 3.0, <https://rfc.zeromq.org/spec/23/>.
    Zmtp,
    /// Lengths of header and payload.
    Plain,
}

/// A connection that says what it is told to.
#[derive(Debug)]
pub struct Raw {
    /// The stream, to say on it whatever one likes.
    pub stream: TcpStream,
    framing: Framing,
}

/// The 64 bytes with which ZMTP begins.
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

/// Where an endpoint is: without its scheme and the id of its node.
fn address_of(endpoint: &str) -> &str {
    let (_, rest) = endpoint.split_once("://").expect("an endpoint has a scheme");
    rest.split_once('@').map_or(rest, |(_, address)| address)
}

impl Raw {
    fn over(endpoint: &str, stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LONG)).expect("the stream is open");
        stream.set_write_timeout(Some(LONG)).expect("the stream is open");
        Self { stream, framing: if endpoint.starts_with("tcp") { Framing::Plain } else { Framing::Zmtp } }
    }

    /// A connection on which nothing was said.
    ///
    /// # Panics
    /// If nobody listens there.
    #[track_caller]
    pub fn connect(endpoint: &str) -> Self {
        Self::over(endpoint, TcpStream::connect(address_of(endpoint)).expect("somebody listens there"))
    }

    /// The same from this loopback address, with room for so few bytes that come, where a number is given.
    ///
    /// # Errors
    /// If nobody listens there, or takes no more connections.
    ///
    /// # Panics
    /// If the endpoint is none of IPv4.
    #[cfg(target_os = "linux")]
    pub fn connect_from(endpoint: &str, from: Ipv4Addr, room: Option<usize>) -> io::Result<Self> {
        // Close-on-exec, or the processes that the test starts would hold it open.
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        if let Some(room) = room {
            set_socket_recv_buffer_size(&socket, room)?;
        }
        bind(&socket, &SocketAddrV4::new(from, 0))?;
        let to: SocketAddrV4 = address_of(endpoint).parse().expect("an address of IPv4");
        connect(&socket, &to)?;
        Ok(Self::over(endpoint, socket.into()))
    }

    /// A connection that can ask.
    ///
    /// # Panics
    /// If the other side does not greet.
    #[track_caller]
    pub fn greeted(endpoint: &str) -> Self {
        let mut raw = Self::connect(endpoint);
        raw.greet().expect("it is greeted");
        raw
    }

    /// What this side says before its first message.
    pub fn greeting(&self) -> Vec<u8> {
        match self.framing {
            Framing::Plain => PREFACE.to_vec(),
            Framing::Zmtp => [&zmtp_greeting()[..], &ready()].concat(),
        }
    }

    /// Says the greeting and takes that of the other side.
    ///
    /// # Errors
    /// If the other side closes the connection.
    ///
    /// # Panics
    /// If it says something else.
    pub fn greet(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.greeting())?;
        match self.framing {
            Framing::Plain => {
                let mut theirs = [0; PREFACE.len()];
                self.stream.read_exact(&mut theirs)?;
                assert_eq!(theirs, PREFACE);
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
    /// If the connection is closed, or the other side takes nothing for long.
    pub fn frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        self.stream.write_all(&zmtp_frame(flags, body))
    }

    /// A message with this header and no payload.
    pub fn message(&self, header: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Zmtp => zmtp_frame(0, header),
            Framing::Plain => {
                let lengths = [header.len() as u32, 0].map(u32::to_be_bytes).concat();
                [&lengths, header].concat()
            }
        }
    }

    /// Sends a message with this header, whatever it is.
    ///
    /// # Errors
    /// As [`Raw::frame`].
    pub fn say(&mut self, header: &[u8]) -> io::Result<()> {
        self.stream.write_all(&self.message(header))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// As [`Raw::frame`].
    pub fn ask(&mut self, id: u64, request: &Request) -> io::Result<()> {
        self.say(&encode_request(RequestId(id), request))
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
        assert!(length <= LARGEST, "{length} bytes are announced");
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Takes the header and the payload of the next message.
    ///
    /// # Errors
    /// If the connection is closed, or nothing comes for long.
    ///
    /// # Panics
    /// If what comes is no message.
    pub fn hear(&mut self) -> io::Result<(Vec<u8>, Vec<u8>)> {
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

    /// Takes the next reply.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn reply(&mut self) -> Result<Reply, ErrorReply> {
        let (header, _) = self.hear().expect("a reply");
        decode_reply(&header).expect("it can be read")
    }

    /// Waits until the other side has closed the connection.
    ///
    /// # Panics
    /// If it does not for long.
    #[track_caller]
    pub fn wait_closed(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("it is not closed: {error}"),
            }
        }
    }
}
