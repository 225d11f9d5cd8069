//! etcd servers for tests: each with one member, in a temporary directory, on free loopback ports, stopped at the end of the test.
//!
//! If etcd is not installed, [`Server::start`] prints that the test is skipped and returns `None`.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::server::{Running, command, free_ports};
use crate::skip::installed;
use crate::wait::{TIMEOUT, wait_until};

/// The options that the storage backend requires.
pub const OPTIONS: [&str; 2] = ["--max-txn-ops=6000", "--max-request-bytes=10000000"];
/// The number of attempts to find free ports.
const ATTEMPTS: usize = 5;

/// A server with its own directory. Dropping it stops the server and removes the data.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    options: Vec<String>,
    /// `http` or `https`.
    scheme: &'static str,
    running: Mutex<Option<Running>>,
    /// The port for clients, and the one for members.
    ports: [u16; 2],
    folder: TempDir,
}

impl Server {
    /// Returns the server that concurrent tests of this process share; each test uses its own prefix. Returns `None`, and prints
    /// that the test is skipped, if etcd is not installed.
    ///
    /// # Panics
    /// Panics if the server does not start.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start(test, &OPTIONS)?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// Starts a server for one test with these options. Returns `None`, and prints that the test is skipped, if etcd is not
    /// installed.
    ///
    /// # Panics
    /// Panics if the server does not start.
    pub fn start(test: &str, options: &[&str]) -> Option<Self> {
        let program = installed(test, "etcd")?;
        let scheme =
            if options.iter().any(|option| option.starts_with("--cert-file")) { "https" } else { "http" };
        let mut server = Self {
            program,
            options: options.iter().map(ToString::to_string).collect(),
            scheme,
            running: Mutex::default(),
            ports: free_ports(),
            folder: TempDir::new().expect("cannot create a temporary directory"),
        };
        for _ in 1..ATTEMPTS {
            if server.try_start() {
                return Some(server);
            }
            server.ports = free_ports();
        }
        server.start_again();
        Some(server)
    }

    /// Starts the server with its existing data and waits until it is ready.
    ///
    /// # Panics
    /// Panics if the server is already running or does not start.
    pub fn start_again(&self) {
        assert!(self.try_start(), "the server exited: {}", self.log());
    }

    /// Returns whether the server is ready; otherwise it has exited.
    fn try_start(&self) -> bool {
        let mut running = self.running.lock();
        assert!(running.is_none(), "the server is already running");
        let [client, peer] = [(self.scheme, self.ports[0]), ("http", self.ports[1])]
            .map(|(scheme, port)| format!("{scheme}://127.0.0.1:{port}"));
        let mut etcd = command(&self.program, "KILL", &[]);
        etcd.args(["--name=test", "--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &format!("test={peer}"), "--data-dir"])
            .arg(self.folder.path().join("data"));
        etcd.args(&self.options).stderr(File::create(self.log_path()).expect("cannot create the log"));
        let server = Running::start(etcd);
        let is_ready = wait_until("etcd is ready or has exited", TIMEOUT, || {
            if server.has_exited() {
                return Some(false);
            }
            self.log().contains("ready to serve client requests").then_some(true)
        });
        *running = is_ready.then_some(server);
        is_ready
    }

    /// Kills the server, as in a crash. Does nothing if the server is not running.
    ///
    /// # Panics
    /// Panics if the server does not exit.
    pub fn kill(&self) {
        let Some(server) = self.running.lock().take() else { return };
        assert!(server.stop(Signal::KILL), "the server does not exit");
    }

    /// Runs `etcdctl` and returns its output.
    ///
    /// # Panics
    /// Panics if the command fails.
    pub fn control(&self, args: &[&str]) -> String {
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(args).stdin(Stdio::null());
        let Output { status, stdout, stderr } =
            etcdctl.output().unwrap_or_else(|error| panic!("{etcdctl:?}: {error}"));
        assert!(status.success(), "{etcdctl:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8_lossy(&stdout).into_owned()
    }

    /// Returns the URL for clients.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.ports[0])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
