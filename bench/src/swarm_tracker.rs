//! The smallest BitTorrent tracker over HTTP (BEP 3 and 23): it tells whoever announces of all who announced before,
//! so that every tool finds its peers the same way and at once.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::torrent::Bencode;

/// The ports that announced themselves, by swarm.
type Swarms = Arc<Mutex<HashMap<String, Vec<u16>>>>;

/// A tracker that answers on a thread of its own for as long as the program runs.
#[derive(Debug)]
pub(crate) struct SwarmTracker {
    address: SocketAddr,
    swarms: Swarms,
}

impl SwarmTracker {
    /// Starts it on a port of the system's choice.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let swarms = Swarms::default();
        let answering = Arc::clone(&swarms);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that breaks off is its own problem.
                let _ = answer(&stream, &answering);
            }
        });
        Ok(Self { address, swarms })
    }

    /// Where clients announce themselves.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/announce", self.address)
    }

    /// Removes all peers.
    pub(crate) fn clear(&self) {
        if let Ok(mut swarms) = self.swarms.lock() {
            swarms.clear();
        }
    }

    /// How many have announced themselves.
    pub(crate) fn count(&self) -> usize {
        self.swarms.lock().map_or(0, |swarms| swarms.values().map(Vec::len).sum())
    }
}

fn answer(mut stream: &TcpStream, swarms: &Swarms) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut request = Vec::new();
    let mut block = [0; 2048];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") && request.len() < 16 << 10 {
        match stream.read(&mut block)? {
            0 => break,
            count => request.extend_from_slice(&block[..count]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let body = announce(request.split_whitespace().nth(1).unwrap_or_default(), swarms)?.encode();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    Ok(())
}

fn announce(url: &str, swarms: &Swarms) -> Result<Bencode> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let swarm = field("info_hash").context("a swarm")?.to_ascii_lowercase();
    let port: u16 = field("port").context("a port")?.parse()?;
    let mut swarms = swarms.lock().ok().context("another announcement panicked")?;
    let ports = swarms.entry(swarm).or_default();
    ports.retain(|other| *other != port);
    let others = ports.iter().flat_map(|port| [&[127, 0, 0, 1], &port.to_be_bytes()[..]].concat()).collect();
    if field("event") != Some("stopped") {
        ports.push(port);
    }
    Ok(Bencode::Map(vec![
        ("interval", Bencode::Number(60)),
        ("min interval", Bencode::Number(1)),
        ("peers", Bencode::Bytes(others)),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_announces_is_told_of_those_before() {
        let swarms = Swarms::default();
        let announce = |port: u16, more: &str| {
            let url = format!("/announce?info_hash=%AA&peer_id=x&port={port}{more}");
            announce(&url, &swarms).unwrap().encode()
        };
        let peers = |peers: &[u8]| {
            let head = format!("d8:intervali60e12:min intervali1e5:peers{}:", peers.len());
            [head.as_bytes(), peers, b"e"].concat()
        };
        assert_eq!(announce(258, ""), peers(&[]));
        assert_eq!(announce(259, ""), peers(&[127, 0, 0, 1, 1, 2]));
        assert_eq!(announce(258, "&event=stopped"), peers(&[127, 0, 0, 1, 1, 3]));
        assert_eq!(announce(260, ""), peers(&[127, 0, 0, 1, 1, 3]));
        assert!(super::announce("/announce", &swarms).is_err());
    }
}
