//! A tracker or peer of the demo, in a child process with its own configuration.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use enjambre_control::{Command, Event, Failure, ResultContext};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command as Process};
use tokio::time::timeout;

use crate::cli::output::notice;
use crate::control::client::connect;
use crate::control::socket;

/// Maximum time until a node listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time for the graceful shutdown of a node.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Number of log lines that are shown after a failure.
const LOG_LINES: usize = 8;

pub(super) struct Node {
    pub(super) name: String,
    pub(super) endpoint: String,
    /// The URL of the HTTP listener. Empty if it has none.
    pub(super) url: String,
    pub(super) pid: u32,
    child: Child,
    data_dir: PathBuf,
    log: PathBuf,
}

impl Node {
    pub(super) async fn tracker(folder: &Path, http: bool) -> Result<Self, Failure> {
        let config = "[tracker]\ndata_dir = \"tracker\"\nlease = \"10s\"\n\
                      [transport]\nlisten = [\"zmq://127.0.0.1:0\"]\n";
        Self::start(folder, "tracker", "tracker", config, http).await
    }

    /// Starts a peer with a download limit in bytes per second.
    pub(super) async fn peer(
        folder: &Path,
        number: u32,
        tracker: &str,
        limit: Option<u64>,
        http: bool,
    ) -> Result<Self, Failure> {
        let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| format!("{limit}B/s"));
        let config = format!(
            "[peer]\ndata_dir = \"peer-{number}\"\ntrackers = [\"{tracker}\"]\n[limits]\ndownload = \"{limit}\"\n\
             [transport]\nlisten = [\"tcp://127.0.0.1:0\", \"zmq://127.0.0.1:0\"]\n"
        );
        Self::start(folder, &format!("peer {number}"), "peer", &config, http).await
    }

    async fn start(
        folder: &Path,
        name: &str,
        command: &str,
        config: &str,
        http: bool,
    ) -> Result<Self, Failure> {
        let action = format!("cannot start {name}");
        let data_dir = name.replace(' ', "-");
        let file = folder.join(format!("{data_dir}.toml"));
        let log = folder.join(format!("{data_dir}.log"));
        let listen = if http { "[http]\nlisten = [\"127.0.0.1:0\"]\n" } else { "" };
        tokio::fs::write(&file, [config, listen].concat()).await.context(&action)?;
        let mut process = Process::new(std::env::current_exe().context(&action)?);
        // The environment configures the nodes of the user, not those of the demo.
        for (variable, _) in std::env::vars_os() {
            if variable.to_str().is_some_and(|variable| variable.starts_with("ENJAMBRE_")) {
                process.env_remove(variable);
            }
        }
        // Removes the socket of a killed node with the directory. If the path is too long for a socket, both sides must use
        // the same temporary directory.
        let data_dir = folder.join(data_dir);
        if socket::path(&data_dir).starts_with(&data_dir) {
            let temporary = folder.join("t");
            tokio::fs::create_dir_all(&temporary).await.context(&action)?;
            process.env("TMPDIR", temporary);
        }
        let mut child = process
            .arg(command)
            .arg("--config")
            .arg(&file)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).context(&action)?)
            .kill_on_drop(true)
            .spawn()
            .context(&action)?;
        let pid = child.id().unwrap_or_default();
        let stdout = child.stdout.take().ok_or_else(|| Failure::failed("the child process has no stdout"))?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            let (mut endpoint, mut url) = (None, (!http).then(String::new));
            while endpoint.is_none() || url.is_none() {
                let line = lines.next_line().await.ok()??;
                if let Some((_, found)) = line.split_once("listening on ") {
                    endpoint.get_or_insert_with(|| found.to_owned());
                } else if let Some((_, found)) = line.split_once("HTTP at ") {
                    url = Some(found.to_owned());
                }
            }
            endpoint.zip(url)
        };
        let found = timeout(START_TIMEOUT, ready).await.ok().flatten();
        let is_ready = found.is_some();
        let (endpoint, url) = found.unwrap_or_default();
        let node = Self { name: name.to_owned(), endpoint, url, pid, child, data_dir, log };
        if !is_ready {
            node.show_log();
            return Err(Failure::failed(format!("{name} did not start")));
        }
        Ok(node)
    }

    pub(super) async fn run(
        &self,
        command: Command,
        show: &mut (dyn FnMut(Event) + Send),
    ) -> Result<(), Failure> {
        let connection = connect(&self.data_dir).await.context(format!("cannot connect to {}", self.name))?;
        let result = connection.run(command, show).await;
        result.unwrap_or_else(|| Err(Failure::failed(format!("{} exited", self.name))))
    }

    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// Shuts the node down. Kills it if that takes too long.
    pub(super) async fn stop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let signalled = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        if !signalled || timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    pub(super) fn show_log(&self) {
        let Ok(text) = std::fs::read_to_string(&self.log) else { return };
        let lines: Vec<_> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            notice(&format!("  {}: {}", self.name, line));
        }
    }
}
