//! Trackers and peers: a folder, a configuration file, and the process that runs on them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::content;
use crate::process::{Output, Process};
use crate::wait::{LONG, wait_until};

/// How the nodes of a test reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// As it is by default: trackers over ZeroMQ, peers over both, of which the better is used.
    Stock,
    /// All over ZeroMQ.
    Zmq,
    /// All over plain TCP.
    Tcp,
    /// Encrypted and authenticated: trackers over ZeroMQ, peers over both.
    Secure,
}

impl Wire {
    /// At which schemes the nodes of a kind listen.
    fn schemes(self, kind: &str) -> &'static [&'static str] {
        match (self, kind) {
            (Self::Zmq, _) | (Self::Stock, "tracker") => &["zmq"],
            (Self::Tcp, _) => &["tcp"],
            (Self::Secure, "tracker") => &["zmqs"],
            (Self::Secure, _) => &["tcps", "zmqs"],
            (Self::Stock, _) => &["tcp", "zmq"],
        }
    }
}

/// Which database, which place for content and which transport the nodes of a test have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The name of the storage backend, for trackers and peers.
    pub backend: &'static str,
    /// Where peers keep content: `database` or `files`.
    pub content: &'static str,
    /// How they reach each other.
    pub wire: Wire,
}

impl Default for Setup {
    fn default() -> Self {
        Self { backend: "sqlite", content: "database", wire: Wire::Stock }
    }
}

impl FromStr for Setup {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (backend, content) = match name {
            "sqlite" => ("sqlite", "database"),
            "sqlite+files" => ("sqlite", "files"),
            "sled" => ("sled", "database"),
            "sled+files" => ("sled", "files"),
            _ => {
                return Err(format!(
                    "{name:?} is not a setup; there are sqlite, sqlite+files, sled and sled+files"
                ));
            }
        };
        Ok(Self { backend, content, ..Self::default() })
    }
}

/// A temporary folder with everything of one test in it.
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
    /// An empty one.
    ///
    /// # Panics
    /// If no folder can be made.
    pub fn new(setup: Setup) -> Self {
        Self::new_in(&std::env::temp_dir(), setup)
    }

    /// An empty one inside of another folder.
    ///
    /// # Panics
    /// If no folder can be made.
    pub fn new_in(parent: &Path, setup: Setup) -> Self {
        let folder = tempfile::Builder::new().prefix("enj-").tempdir_in(parent).expect("a temporary folder");
        Self { folder, setup }
    }

    /// An empty one whose nodes reach each other so.
    ///
    /// # Panics
    /// If no folder can be made.
    pub fn over(wire: Wire) -> Self {
        Self::new(Setup { wire, ..Setup::default() })
    }

    /// Leaves it where it is, to be looked into, and says where that is.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        eprintln!("everything is still in {}", self.folder.path().display());
    }

    /// A path inside of it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of random content that depends on `size` alone; returns its path and its hash.
    pub fn file(&self, name: &str, size: u64) -> (PathBuf, String) {
        let path = self.path(name);
        let hash = content::write_file(&path, size, size);
        (path, hash)
    }

    /// A running tracker.
    #[track_caller]
    pub fn tracker(&self, name: &str) -> Tracker {
        self.tracker_with(name, &[])
    }

    /// A running tracker with some `KEY=VALUE` of its own.
    ///
    /// # Panics
    /// If it is not ready in time.
    #[track_caller]
    pub fn tracker_with(&self, name: &str, settings: &[&str]) -> Tracker {
        let mut node = self.node(name, "tracker", settings);
        node.write_config(&format!(
            "[tracker]\ndata_dir = \"data\"\n[transport]\nlisten = {:?}\n[storage]\nbackend = \"{}\"\n",
            self.listen("tracker", &own_address()),
            self.setup.backend
        ));
        node.start();
        Tracker { node }
    }

    /// A peer of these trackers, not yet running.
    pub fn peer(&self, name: &str, trackers: &[&Tracker]) -> Peer {
        self.peer_with(name, trackers, &[])
    }

    /// A peer with some `KEY=VALUE` of its own, not yet running.
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

    /// A running peer.
    #[track_caller]
    pub fn running_peer(&self, name: &str, trackers: &[&Tracker]) -> Peer {
        self.running_peer_with(name, trackers, &[])
    }

    /// A running peer with some `KEY=VALUE` of its own.
    #[track_caller]
    pub fn running_peer_with(&self, name: &str, trackers: &[&Tracker], settings: &[&str]) -> Peer {
        let mut peer = self.peer_with(name, trackers, settings);
        peer.start();
        peer
    }

    /// A peer without a configuration, which `enjambre join` is to write.
    pub fn newcomer(&self, name: &str) -> Peer {
        Peer { node: self.node(name, "peer", &[]) }
    }

    /// A peer that came in by an invitation, listening at a port that the system chose, and not yet running; and its id.
    ///
    /// # Panics
    /// If it is not let in.
    #[track_caller]
    pub fn joined(&self, name: &str, invitation: &str) -> (Peer, String) {
        let peer = self.newcomer(name);
        let output = peer.run(["join", invitation, "--listen", "tcps://127.0.0.1:0", "--json"]).ok();
        let id = output.json()[0]["peer"].as_str().expect("its id").to_owned();
        (peer, id)
    }

    fn listen(&self, kind: &str, host: &str) -> Vec<String> {
        self.setup.wire.schemes(kind).iter().map(|scheme| format!("{scheme}://{host}:0")).collect()
    }

    fn node(&self, name: &str, kind: &'static str, settings: &[&str]) -> Node {
        let folder = self.path(name);
        fs::create_dir(&folder).expect("each node of a test has a name of its own");
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Node { folder, kind, settings, process: None, endpoint: String::new() }
    }
}

/// A loopback address for a tracker alone. A tracker that is started again needs the same port, and at an address
/// of its own no other process of the machine can have taken it in between.
fn own_address() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    if !cfg!(target_os = "linux") {
        return "127.0.0.1".to_owned();
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{high}.{low}", 1 + number % 250)
}

#[derive(Debug)]
struct Node {
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
        fs::write(self.config(), text).expect("a test's folder can be written");
    }

    fn args<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Vec<OsString> {
        let mut all: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        all.extend(["--config".into(), self.config().into()]);
        all.extend(self.settings.iter().flat_map(|setting| ["--set".into(), setting.into()]));
        // A tracker that has been given a port keeps it, and can be asked there.
        if self.kind == "tracker" && !self.endpoint.is_empty() {
            all.extend(["--set".into(), format!("transport.listen=[\"{}\"]", self.endpoint).into()]);
        }
        all
    }

    #[track_caller]
    fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let args = self.args([self.kind]);
        let mut process = Process::start(&self.folder, args);
        self.endpoint = process.wait_line(LONG, endpoint_in);
        self.process = Some(process);
    }

    #[track_caller]
    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    #[track_caller]
    fn take(&mut self) -> Process {
        self.process.take().expect("it runs")
    }
}

/// The endpoint that a line of output tells, if it does.
pub fn endpoint_in(line: &str) -> Option<String> {
    let begin = ["zmqs://", "tcps://", "zmq://", "tcp://"].iter().find_map(|scheme| line.find(scheme))?;
    let rest = &line[begin..];
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | ']')).unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

macro_rules! lifecycle {
    ($type:ident) => {
        impl $type {
            /// Starts the process, and waits until it is ready.
            ///
            /// # Panics
            /// If it runs already, or is not ready in time.
            #[track_caller]
            pub fn start(&mut self) {
                self.node.start();
            }

            /// `kill -9`.
            #[track_caller]
            pub fn kill(&mut self) {
                self.node.take().kill();
            }

            /// Starts the process, and waits until it is ready or has ended; then what it said.
            ///
            /// # Panics
            /// If it runs already, or neither happens in time.
            #[track_caller]
            pub fn try_start(&mut self) -> Result<(), Output> {
                assert!(self.node.process.is_none(), "it runs already");
                let mut process = Process::start(&self.node.folder, self.node.args([self.node.kind]));
                match process.find_line(LONG, endpoint_in) {
                    Ok(endpoint) => {
                        self.node.endpoint = endpoint;
                        self.node.process = Some(process);
                        Ok(())
                    }
                    Err(_) => Err(process.wait(LONG)),
                }
            }

            /// What the running process wrote to standard error so far.
            ///
            /// # Panics
            /// If it does not run.
            #[track_caller]
            pub fn stderr_text(&mut self) -> String {
                self.node.process().stderr_text()
            }

            /// Starts the process and kills it after this time, wherever its start has come by then.
            ///
            /// # Panics
            /// If it runs already.
            #[track_caller]
            pub fn start_and_kill(&mut self, after: Duration) {
                assert!(self.node.process.is_none(), "it runs already");
                let process = Process::start(&self.node.folder, self.node.args([self.node.kind]));
                std::thread::sleep(after);
                process.kill();
            }

            /// Asks it to end with a signal, and waits for that.
            ///
            /// # Panics
            /// If it has not ended at the deadline.
            #[track_caller]
            pub fn stop(&mut self, signal: Signal, deadline: Duration) -> Output {
                let mut process = self.node.take();
                process.signal(signal);
                process.wait(deadline)
            }

            /// Sends a signal.
            #[track_caller]
            pub fn signal(&mut self, signal: Signal) {
                self.node.process().signal(signal);
            }

            /// Waits until what runs has written this to standard error.
            #[track_caller]
            pub fn wait_stderr(&mut self, text: &str) {
                let process = self.node.process();
                wait_until(text, LONG, || process.stderr_text().contains(text).then_some(()));
            }

            /// The process id of what runs.
            #[track_caller]
            pub fn pid(&mut self) -> u32 {
                self.node.process().pid()
            }

            /// The first endpoint where it listens, or did when it ran last.
            pub fn endpoint(&self) -> &str {
                &self.node.endpoint
            }

            /// Its folder, in which its data folder and its configuration file are.
            pub fn folder(&self) -> &Path {
                &self.node.folder
            }

            /// From now on it is started with this `KEY=VALUE` too.
            pub fn set(&mut self, setting: &str) {
                self.node.settings.push(setting.to_owned());
            }

            /// Runs a command on its configuration, and waits for its end.
            #[track_caller]
            pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
                self.spawn(args).wait(LONG)
            }

            /// Starts a command on its configuration.
            #[track_caller]
            pub fn spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Process {
                Process::start(&self.node.folder, self.node.args(args))
            }
        }
    };
}

/// A tracker.
#[derive(Debug)]
pub struct Tracker {
    node: Node,
}

lifecycle!(Tracker);

impl Tracker {
    /// Makes an invitation with these options.
    ///
    /// # Panics
    /// If that is not one line.
    #[track_caller]
    pub fn invite(&self, options: &[&str]) -> String {
        let output = self.run([&["invite"], options].concat()).ok();
        let line = output.stdout.trim().to_owned();
        assert!(line.starts_with("enjambre1.") && !line.contains(char::is_whitespace), "{line}");
        line
    }

    /// What `peers --json` says of a peer.
    ///
    /// # Panics
    /// If it is not among them.
    #[track_caller]
    pub fn member(&self, id: &str) -> Value {
        let members = self.run(["peers", "--json"]).ok().json();
        members.into_iter().find(|member| member["peer"] == id).expect("a member with this id")
    }
}

/// A peer: the daemon, when it runs, and the commands on the same folder.
#[derive(Debug)]
pub struct Peer {
    node: Node,
}

lifecycle!(Peer);

impl Peer {
    /// Publishes a path with these options.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn publish(&self, path: &Path, options: &[&str]) -> Output {
        let mut args = vec![OsStr::new("publish"), path.as_os_str()];
        args.extend(options.iter().map(OsStr::new));
        self.run(args).ok()
    }

    /// What `list --json` prints.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        self.run(["list", "--json"]).ok().json()
    }

    /// What `list` says of a name (its newest version).
    #[track_caller]
    pub fn listed(&self, name: &str) -> Option<Value> {
        self.list().into_iter().find(|file| file["name"] == name)
    }

    /// How many providers `list` says a name has; none where the name is not listed.
    #[track_caller]
    pub fn providers(&self, name: &str) -> Option<u64> {
        self.listed(name).map(|file| file["providers"].as_u64().expect("a number of providers"))
    }

    /// Waits until a name has this many providers.
    #[track_caller]
    pub fn wait_providers(&self, name: &str, wanted: u64, deadline: Duration) {
        wait_until(&format!("{wanted} providers of {name}"), deadline, || {
            (self.providers(name) == Some(wanted)).then_some(())
        });
    }

    /// Downloads to a path.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn get_to(&self, name: &str, path: &Path) -> Output {
        self.run([OsStr::new("get"), OsStr::new(name), OsStr::new("-o"), path.as_os_str()]).ok()
    }

    /// What `library --json` says of a name.
    #[track_caller]
    pub fn in_library(&self, name: &str) -> Option<Value> {
        self.run(["library", "--json"]).ok().json().into_iter().find(|file| file["name"] == name)
    }

    /// Bytes of pieces that the running daemon has sent since it was started.
    ///
    /// # Panics
    /// If its status does not tell.
    #[track_caller]
    pub fn sent(&self) -> u64 {
        let status = self.run(["status", "--json"]).ok().json();
        find_number(&status[0], "sent").unwrap_or_else(|| panic!("no `sent` in {status:?}"))
    }
}

/// The first number under this key anywhere in the value.
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
