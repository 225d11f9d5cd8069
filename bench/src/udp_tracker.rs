//! BitTorrent trackers over UDP (BEP 15): started, asked whether they are ready, and put under load.
//!
//! The load comes from two threads with a socket each and many requests under way. What is not answered in time
//! counts as lost and is not asked again.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enjambre_tests::process::Process;

use crate::process::output_of;

/// Swarms that are announced to.
const FILES: u32 = 4000;
/// Requests under way on each socket.
const WINDOW: usize = 64;
const THREADS: usize = 2;
const LOST_AFTER: Duration = Duration::from_millis(100);
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A tracker program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Opentracker,
    Aquatic,
}

impl Kind {
    /// Its name and that of its binary.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Opentracker => "opentracker",
            Self::Aquatic => "aquatic_udp",
        }
    }

    /// Fails where it is not installed.
    pub(crate) fn look(self) -> Result<()> {
        let option = match self {
            Self::Opentracker => "-h",
            Self::Aquatic => "--version",
        };
        output_of(Command::new(self.name()).arg(option)).map(drop).or_else(|error| {
            // opentracker's help ends with a status of its own.
            let is_missing = error.chain().any(|cause| cause.is::<std::io::Error>());
            if is_missing { Err(error) } else { Ok(()) }
        })
    }
}

/// A running tracker.
#[derive(Debug)]
pub(crate) struct UdpTracker {
    /// Its process.
    pub(crate) process: Process,
    /// How long it took until it answered.
    pub(crate) ready: Duration,
    address: SocketAddr,
}

impl UdpTracker {
    /// Starts one, and waits until it answers.
    pub(crate) fn start(kind: Kind, folder: &Path) -> Result<Self> {
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(kind.name());
        match kind {
            Kind::Opentracker => {
                // Some builds serve only what they are told of.
                let list: String = (0..FILES).map(|file| format!("{}\n", hex(&info_hash(file)))).collect();
                fs::write(folder.join("list"), list)?;
                let port = port.to_string();
                command.args(["-i", "127.0.0.1", "-p", &port, "-P", &port, "-w", "list", "-d"]).arg(folder);
                command.current_dir(folder);
            }
            Kind::Aquatic => {
                let config = folder.join("aquatic.toml");
                fs::write(&config, format!("[network]\naddress = \"127.0.0.1:{port}\"\n"))?;
                command.arg("--config-file").arg(config);
            }
        }
        let begun = Instant::now();
        let mut process = Process::start_command(folder, command);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = client(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        while connect(&socket).is_err() {
            ensure!(process.is_running(), "{} ended: {}", kind.name(), process.stderr_text());
            ensure!(begun.elapsed() < READY_WITHIN, "{} is not ready", kind.name());
        }
        Ok(Self { process, ready: begun.elapsed(), address })
    }

    /// Announces entries that it does not have, for so long; returns how many it took.
    pub(crate) fn announce(&self, time: Duration, first: &AtomicU32) -> Result<u64> {
        self.flood(time, 1, |packet| {
            let number = first.fetch_add(1, Ordering::Relaxed);
            let port = 1024 + u16::try_from(number / FILES % 60_000).unwrap_or_default();
            packet.extend(info_hash(number % FILES));
            packet.extend(peer_id(port));
            packet.extend([0; 8]);
            packet.extend(1_000_000_u64.to_be_bytes());
            packet.extend([0; 8]);
            // No event, the sender's address, no key, at most one peer in return.
            packet.extend([[0; 4], [0; 4], [0; 4], 1_u32.to_be_bytes()].concat());
            packet.extend(port.to_be_bytes());
        })
    }

    /// Asks for one swarm after another, for so long; returns how many it answered.
    pub(crate) fn look_up(&self, time: Duration) -> Result<u64> {
        let next = AtomicU32::new(0);
        self.flood(time, 2, |packet| packet.extend(info_hash(next.fetch_add(1, Ordering::Relaxed) % FILES)))
    }

    fn flood(&self, time: Duration, action: u32, body: impl Fn(&mut Vec<u8>) + Sync) -> Result<u64> {
        thread::scope(|scope| {
            let threads: Vec<_> =
                (0..THREADS).map(|_| scope.spawn(|| flood(self.address, time, action, &body))).collect();
            let mut answered = 0;
            for thread in threads {
                answered += thread.join().ok().context("a thread of the load ended early")??;
            }
            ensure!(answered > 0, "nothing was answered");
            Ok(answered)
        })
    }
}

fn flood(address: SocketAddr, time: Duration, action: u32, body: impl Fn(&mut Vec<u8>)) -> Result<u64> {
    let socket = client(address)?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    let connection = connect(&socket)?;
    let (mut under_way, mut answered, mut number) = (0, 0, 0_u32);
    let (mut packet, mut answer) = (Vec::new(), [0; 2048]);
    let end = Instant::now() + time;
    while Instant::now() < end {
        while under_way < WINDOW {
            number = number.wrapping_add(1);
            packet.clear();
            packet.extend(connection);
            packet.extend(action.to_be_bytes());
            packet.extend(number.to_be_bytes());
            body(&mut packet);
            socket.send(&packet)?;
            under_way += 1;
        }
        match socket.recv(&mut answer) {
            Ok(len) => {
                ensure!(
                    len >= 8 && answer[..4] == action.to_be_bytes(),
                    "it refuses: {:?}",
                    text(&answer[..len])
                );
                answered += 1;
                under_way -= 1;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                under_way = 0;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(answered)
}

fn client(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(address)?;
    Ok(socket)
}

/// The id that all further requests on this socket carry.
fn connect(socket: &UdpSocket) -> Result<[u8; 8]> {
    let request = [&0x0417_2710_1980_u64.to_be_bytes()[..], &[0; 4], &7_u32.to_be_bytes()].concat();
    socket.send(&request)?;
    let mut answer = [0; 16];
    let len = socket.recv(&mut answer)?;
    let [0, 0, 0, 0, 0, 0, 0, 7, id @ ..] = answer else { bail!("no answer to connect: {answer:?}") };
    ensure!(len == answer.len(), "a short answer to connect");
    Ok(id)
}

fn info_hash(file: u32) -> [u8; 20] {
    let hash = blake3::hash(&file.to_be_bytes());
    let mut id = [0; 20];
    id.copy_from_slice(&hash.as_bytes()[..20]);
    id
}

fn peer_id(port: u16) -> [u8; 20] {
    let mut id = *b"-XX0000-000000000000";
    id[18..].copy_from_slice(&port.to_be_bytes());
    id
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
