//! The tools that take part, each behind the same small trait.

mod aria2;
mod curl;
mod enjambre;
mod gateway;
mod libtorrent;
mod limit;
mod rqbit;
mod rsync;
mod sendme;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use enjambre_tests::process::Process;
use enjambre_tests::wait::{TIMEOUT, wait_for};
use serde_json::Value;

pub(crate) use self::enjambre::{Enjambre, Variant};
use self::gateway::HttpServer;
use crate::process::Work;
use crate::stage::Content;
use crate::swarm_tracker::SwarmTracker;

/// What a tool can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Bring one file to one place.
    File,
    /// Bring one file to many places, which help each other.
    Swarm,
    /// Hold the source to a number of bytes a second.
    Limited,
    /// Bring a folder.
    Folder,
    /// Take a file in, so that it can be offered.
    Publish,
    /// Serve a file over HTTP.
    Serve,
}

/// One run of a tool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    /// An empty folder, gone afterwards.
    pub(crate) folder: &'a Path,
    /// What to send around.
    pub(crate) content: &'a Content,
    /// How many places it goes to.
    pub(crate) downloads: usize,
    /// What the source may send in a second, in bytes.
    pub(crate) upload: Option<u64>,
    /// Where those who speak BitTorrent find each other.
    pub(crate) swarm_tracker: &'a SwarmTracker,
}

/// A tool, or a way of using it.
pub(crate) trait Tool {
    /// As the tables have it; its first word is the tool's name.
    fn name(&self) -> &'static str;

    /// Its version, or why it cannot take part.
    fn version(&self) -> Result<String>;

    /// Whether it has something for this task.
    fn can(&self, task: Task) -> bool;

    /// Starts a source of the content, and returns when it can be asked.
    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>>;

    /// Starts to take the content in; what else has to run meanwhile goes along. For those who can [`Task::Publish`].
    fn publish(&self, run: &Run<'_>) -> Result<(Box<dyn Source>, Work)> {
        anyhow::bail!("{} does not publish {}", self.name(), run.content.name())
    }
}

/// A process that offers the content. It ends when this is dropped.
pub(crate) trait Source {
    /// The processes that the sending side consists of.
    fn pids(&mut self) -> Vec<u32>;

    /// Starts the download with this number into an empty folder.
    fn fetch(&mut self, number: usize, target: &Path) -> Result<Work>;

    /// Where the content is when the download with this number is done.
    fn arrived(&mut self, number: usize, target: &Path) -> Result<PathBuf>;

    /// The bytes of content that it has sent so far, where it tells.
    fn sent(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// All tools, the reference first and ours last.
pub(crate) fn all() -> Vec<Rc<dyn Tool>> {
    vec![
        Rc::new(limit::Limit),
        Rc::new(rsync::Rsync),
        Rc::new(curl::Curl),
        Rc::new(libtorrent::Libtorrent),
        Rc::new(rqbit::Rqbit),
        Rc::new(aria2::Aria2),
        Rc::new(sendme::Sendme),
        Rc::new(Enjambre(Variant::Tcp)),
        Rc::new(Enjambre(Variant::Zmq)),
        Rc::new(Enjambre(Variant::Tcps)),
        Rc::new(Enjambre(Variant::Database)),
        Rc::new(HttpServer::Nginx),
        Rc::new(HttpServer::Gateway),
    ]
}

/// A port that was free a moment ago, for tools that cannot be told to choose one.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits until a process listens on a port.
fn wait_for_port(port: u16, process: &mut Process) {
    wait_for(&format!("a listener on port {port}"), TIMEOUT, || {
        assert!(process.is_running(), "it ended: {}", process.stderr_text());
        TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_secs(1)).is_ok()
    });
}

/// Asks a tool's own interface over HTTP; the answer is JSON.
fn http(port: u16, method: &str, path: &str, body: &str) -> Result<Value> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("no answer to {path}: {answer:?}"))?;
    serde_json::from_str(body.trim()).with_context(|| format!("the answer to {path}: {body}"))
}
