//! Trackers and peers under test: a directory, a configuration file and a process each.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::content;
use crate::process::{Output, Process};
use crate::setup::{Setup, Wire};
use crate::wait::{TIMEOUT, wait_until};

/// A temporary directory that contains all nodes and files of a test.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    setup: Setup,
}

impl Default for World {
    fn default() -> Self {
        Self::new(Setup::default())
    }
}

impl World {
    /// Creates an empty temporary directory.
    ///
    /// # Panics
    /// Panics if the directory cannot be created.
    pub fn new(setup: Setup) -> Self {
        Self::new_in(&std::env::temp_dir(), setup)
    }

    /// Creates an empty directory in another directory.
    ///
    /// # Panics
    /// Panics if the directory cannot be created.
    pub fn new_in(parent: &Path, setup: Setup) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("enj-")
            .tempdir_in(parent)
            .expect("cannot create a temporary directory");
        Self { folder, setup }
    }

    /// Creates an empty temporary directory for nodes with the given transports.
    ///
    /// # Panics
    /// Panics if the directory cannot be created.
    pub fn over(wire: Wire) -> Self {
        Self::new(Setup { wire, ..Setup::default() })
    }

    /// Disables the removal of the directory and prints its path.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        eprintln!("test data is kept in {}", self.folder.path().display());
    }

    /// Returns a path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of pseudorandom content derived from `size`. Returns its path and its hash.
    pub fn file(&self, name: &str, size: u64) -> (PathBuf, String) {
        let path = self.path(name);
        let hash = content::write_file(&path, size, size);
        (path, hash)
    }

    /// Starts a tracker.
    #[track_caller]
    pub fn tracker(&self, name: &str) -> Tracker {
        self.tracker_with(name, &[])
    }

    /// Starts a tracker with additional `KEY=VALUE` settings.
    ///
    /// # Panics
    /// Panics if the tracker is not ready before the timeout.
    #[track_caller]
    pub fn tracker_with(&self, name: &str, settings: &[&str]) -> Tracker {
        let mut node = self.node(name, "tracker", settings);
        node.write_config(&format!(
            "[tracker]\ndata_dir = \"data\"\n[transport]\nlisten = {:?}\n[storage]\nbackend = \"{}\"\n",
            self.listen("tracker", &unique_loopback_address()),
            self.setup.backend
        ));
        node.start();
        Tracker { node }
    }

    /// Configures a peer without starting it.
    pub fn peer(&self, name: &str, trackers: &[&Tracker]) -> Peer {
        self.peer_with(name, trackers, &[])
    }

    /// Configures a peer with additional `KEY=VALUE` settings without starting it.
    pub fn peer_with(&self, name: &str, trackers: &[&Tracker], settings: &[&str]) -> Peer {
        let endpoints: Vec<&str> = trackers.iter().map(|tracker| tracker.endpoint()).collect();
        let node = self.node(name, "peer", settings);
        node.write_config(&format!(
            "[peer]\ndata_dir = \"data\"\ntrackers = {endpoints:?}\n\
             [transport]\nlisten = {:?}\n\
             [library]\ncontent = \"{}\"\n[storage]\nbackend = \"{}\"\n",
            self.listen("peer", "127.0.0.1"),
            self.setup.content,
            self.setup.backend
        ));
        Peer { node }
    }

    /// Starts a peer.
    #[track_caller]
    pub fn running_peer(&self, name: &str, trackers: &[&Tracker]) -> Peer {
        self.running_peer_with(name, trackers, &[])
    }

    /// Starts a peer with additional `KEY=VALUE` settings.
    #[track_caller]
    pub fn running_peer_with(&self, name: &str, trackers: &[&Tracker], settings: &[&str]) -> Peer {
        let mut peer = self.peer_with(name, trackers, settings);
        peer.start();
        peer
    }

    /// Creates a peer without a configuration file; `enjambre join` writes one.
    pub fn unconfigured_peer(&self, name: &str) -> Peer {
        Peer { node: self.node(name, "peer", &[]) }
    }

    /// Joins an invite-only swarm. Returns the peer, which is not running, and its id.
    ///
    /// # Panics
    /// Panics if the tracker refuses the peer.
    #[track_caller]
    pub fn joined(&self, name: &str, invitation: &str) -> (Peer, String) {
        let peer = self.unconfigured_peer(name);
        let output = peer.run(["join", invitation, "--listen", "tcps://127.0.0.1:0", "--json"]).ok();
        let id = output.json()[0]["peer"].as_str().expect("`join` prints the peer id").to_owned();
        (peer, id)
    }

    fn listen(&self, kind: &str, host: &str) -> Vec<String> {
        self.setup.wire.schemes(kind).iter().map(|scheme| format!("{scheme}://{host}:0")).collect()
    }

    fn node(&self, name: &str, kind: &'static str, settings: &[&str]) -> Node {
        let folder = self.path(name);
        fs::create_dir(&folder).expect("cannot create the node directory; node names must be unique");
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Node { folder, kind, settings, process: None, endpoint: String::new() }
    }
}

/// Returns a loopback address that no other process uses. A restarted tracker must get the port that it had before.
fn unique_loopback_address() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    if !cfg!(target_os = "linux") {
        return "127.0.0.1".to_owned();
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{high}.{low}", 1 + number % 250)
}

/// The parts that trackers and peers have in common.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    kind: &'static str,
    settings: Vec<String>,
    process: Option<Process>,
    endpoint: String,
}

impl Node {
    fn config(&self) -> PathBuf {
        self.folder.join("enjambre.toml")
    }

    fn write_config(&self, text: &str) {
        fs::write(self.config(), text).expect("cannot write the configuration file");
    }

    fn args<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Vec<OsString> {
        let mut all: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        all.extend(["--config".into(), self.config().into()]);
        all.extend(self.settings.iter().flat_map(|setting| ["--set".into(), setting.into()]));
        // A restarted tracker must listen at the endpoint that the peers have in their configuration.
        if all[0] == "tracker" && !self.endpoint.is_empty() {
            all.extend(["--set".into(), format!("transport.listen=[\"{}\"]", self.endpoint).into()]);
        }
        all
    }

    #[track_caller]
    fn spawn_daemon(&self) -> Process {
        assert!(self.process.is_none(), "the {} is already running", self.kind);
        self.spawn([self.kind])
    }

    #[track_caller]
    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node is not running")
    }

    #[track_caller]
    fn take_process(&mut self) -> Process {
        self.process.take().expect("the node is not running")
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Panics
    /// Panics if the node is already running or is not ready before the timeout.
    #[track_caller]
    pub fn start(&mut self) {
        let mut process = self.spawn_daemon();
        self.endpoint = process.wait_line(TIMEOUT, endpoint_in);
        self.process = Some(process);
    }

    /// Returns the address of the HTTP listener of a process that was just started.
    #[track_caller]
    pub fn http_address(&mut self) -> String {
        let address =
            |line: &str| Some(line.split_once("HTTP at http://")?.1.trim_end_matches('/').to_owned());
        self.process().wait_line(TIMEOUT, address)
    }

    /// Starts the process and waits until it is ready or has exited. Returns the output of a process that has exited.
    ///
    /// # Panics
    /// Panics if the node is already running or neither happens before the timeout.
    #[track_caller]
    pub fn try_start(&mut self) -> Result<(), Output> {
        let mut process = self.spawn_daemon();
        match process.find_line(TIMEOUT, endpoint_in) {
            Ok(endpoint) => {
                self.endpoint = endpoint;
                self.process = Some(process);
                Ok(())
            }
            Err(_) => Err(process.wait(TIMEOUT)),
        }
    }

    /// Starts the process and kills it after this time, during its startup or later.
    ///
    /// # Panics
    /// Panics if the node is already running.
    #[track_caller]
    pub fn start_and_kill(&mut self, after: Duration) {
        let process = self.spawn_daemon();
        std::thread::sleep(after);
        process.kill();
    }

    /// Kills the process with `SIGKILL`.
    #[track_caller]
    pub fn kill(&mut self) {
        self.take_process().kill();
    }

    /// Sends a signal that ends the process, and waits for its exit.
    ///
    /// # Panics
    /// Panics if the process has not exited at the deadline.
    #[track_caller]
    pub fn stop(&mut self, signal: Signal, deadline: Duration) -> Output {
        let mut process = self.take_process();
        process.signal(signal);
        process.wait(deadline)
    }

    /// Sends a signal to the process.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Returns the standard error output of the running process so far.
    ///
    /// # Panics
    /// Panics if the node is not running.
    #[track_caller]
    pub fn stderr_text(&mut self) -> String {
        self.process().stderr_text()
    }

    /// Waits until the running process has written this text to standard error.
    #[track_caller]
    pub fn wait_stderr(&mut self, text: &str) {
        let process = self.process();
        wait_until(text, TIMEOUT, || process.stderr_text().contains(text).then_some(()));
    }

    /// Returns the id of the running process.
    #[track_caller]
    pub fn pid(&mut self) -> u32 {
        self.process().pid()
    }

    /// Returns the first endpoint at which the node listens, or listened in its last run.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns the directory that contains the data directory and the configuration file.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds a `KEY=VALUE` setting for later commands and starts.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Runs a command with the configuration of the node, and waits for its exit.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.spawn(args).wait(TIMEOUT)
    }

    /// Starts a command with the configuration of the node.
    #[track_caller]
    pub fn spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Process {
        Process::start(&self.folder, self.args(args))
    }
}

/// Returns the first endpoint in a line of output.
pub fn endpoint_in(line: &str) -> Option<String> {
    let start = ["zmqs://", "tcps://", "zmq://", "tcp://"].iter().find_map(|scheme| line.find(scheme))?;
    let rest = &line[start..];
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | ']')).unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

/// A tracker.
#[derive(Debug)]
pub struct Tracker {
    node: Node,
}

impl Deref for Tracker {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl DerefMut for Tracker {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

impl Tracker {
    /// Creates an invitation with the given command-line options.
    ///
    /// # Panics
    /// Panics if the output is not one invitation.
    #[track_caller]
    pub fn invite(&self, options: &[&str]) -> String {
        let output = self.run([&["invite"], options].concat()).ok();
        let line = output.stdout.trim().to_owned();
        assert!(line.starts_with("enjambre1.") && !line.contains(char::is_whitespace), "{line}");
        line
    }

    /// Returns the entry of a peer in the output of `peers --json`.
    ///
    /// # Panics
    /// Panics if the output does not contain the peer.
    #[track_caller]
    pub fn member(&self, id: &str) -> Value {
        let members = self.run(["peers", "--json"]).ok().json();
        members.into_iter().find(|member| member["peer"] == id).expect("no member has this id")
    }
}

/// A peer: a daemon and commands that use the same directory.
#[derive(Debug)]
pub struct Peer {
    node: Node,
}

impl Deref for Peer {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

impl Peer {
    /// Publishes a path with the given command-line options.
    ///
    /// # Panics
    /// Panics if the command fails.
    #[track_caller]
    pub fn publish(&self, path: &Path, options: &[&str]) -> Output {
        let mut args = vec![OsStr::new("publish"), path.as_os_str()];
        args.extend(options.iter().map(OsStr::new));
        self.run(args).ok()
    }

    /// Returns the output of `list --json`.
    ///
    /// # Panics
    /// Panics if the command fails.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        self.run(["list", "--json"]).ok().json()
    }

    /// Returns the newest version of a name according to `list`.
    #[track_caller]
    pub fn listed(&self, name: &str) -> Option<Value> {
        self.list().into_iter().find(|file| file["name"] == name)
    }

    /// Returns the number of providers of a name according to `list`, or `None` if the name is not listed.
    #[track_caller]
    pub fn providers(&self, name: &str) -> Option<u64> {
        self.listed(name).map(|file| file["providers"].as_u64().expect("`providers` is a number"))
    }

    /// Waits until a name has this number of providers.
    #[track_caller]
    pub fn wait_providers(&self, name: &str, wanted: u64, timeout: Duration) {
        wait_until(&format!("{wanted} providers of {name}"), timeout, || {
            (self.providers(name) == Some(wanted)).then_some(())
        });
    }

    /// Downloads a file to a path.
    ///
    /// # Panics
    /// Panics if the command fails.
    #[track_caller]
    pub fn get_to(&self, name: &str, path: &Path) -> Output {
        self.run([OsStr::new("get"), OsStr::new(name), OsStr::new("-o"), path.as_os_str()]).ok()
    }

    /// Returns the entry of a name in the output of `library --json`.
    #[track_caller]
    pub fn in_library(&self, name: &str) -> Option<Value> {
        self.run(["library", "--json"]).ok().json().into_iter().find(|file| file["name"] == name)
    }

    /// Returns the number of piece bytes that the running daemon has sent since it was started.
    ///
    /// # Panics
    /// Panics if the status does not contain the number.
    #[track_caller]
    pub fn sent(&self) -> u64 {
        let status = self.run(["status", "--json"]).ok().json();
        find_number(&status[0], "sent_bytes").unwrap_or_else(|| panic!("no `sent_bytes` in {status:?}"))
    }
}

/// Returns the first number with this key, at any depth.
fn find_number(value: &Value, key: &str) -> Option<u64> {
    match value {
        Value::Object(fields) => fields
            .get(key)
            .and_then(Value::as_u64)
            .or_else(|| fields.values().find_map(|inner| find_number(inner, key))),
        Value::Array(items) => items.iter().find_map(|inner| find_number(inner, key)),
        _ => None,
    }
}
