//! A Redis server with its own directory, on a Unix socket.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use enjambre_redis::RedisSettings;
use tempfile::TempDir;

/// The settings that the backend requires.
const REQUIRED: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A running server. Dropping it ends the server and removes the data.
pub struct Server {
    process: Child,
    options: Vec<String>,
    folder: TempDir,
    databases: AtomicU32,
}

impl Server {
    /// Starts a server with an additional setting. Returns `None` if Redis is not installed.
    pub fn start(setting: &[&str]) -> Option<Self> {
        let folder = TempDir::new().expect("temporary directory");
        let mut options: Vec<String> = REQUIRED.map(str::to_owned).to_vec();
        if let [name, value] = setting {
            options.extend([format!("--{name}"), (*value).to_owned()]);
        }
        let Some(process) = spawn(&folder, &options) else {
            eprintln!("skipped: redis-server is not installed");
            return None;
        };
        Some(Self { process, options, folder, databases: AtomicU32::new(0) })
    }

    /// The settings for a new database.
    pub fn settings(&self) -> RedisSettings {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let url = format!("redis+unix://{}", self.folder.path().join("socket").display());
        RedisSettings { url, name: Some(format!("test_{number}")) }
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        self.process.kill().expect("the server runs");
        self.process.wait().expect("the server ends");
    }

    /// Starts the server again on its data.
    pub fn start_again(&mut self) {
        self.process = spawn(&self.folder, &self.options).expect("redis-server is installed");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a server and waits until it listens.
fn spawn(folder: &TempDir, options: &[String]) -> Option<Child> {
    let socket = folder.path().join("socket");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).arg("--dir").arg(folder.path());
    let mut process = command.args(options).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        let ended = process.try_wait().expect("the status of a child");
        assert!(ended.is_none() && Instant::now() < deadline, "the server does not start: {ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(process)
}
