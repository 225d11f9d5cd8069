//! A tracker or peer of the demo: a child process with a configuration of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command as Process};
use tokio::time::timeout;

use crate::cli::output::{note, plain};
use crate::control::client::{Outcome, attach};
use crate::control::message::{Command, Event};
use crate::control::socket;
use crate::failure::Failure;

/// How long a node may take to listen.
const READY: Duration = Duration::from_secs(30);
/// How long a node may take to end in order.
const END: Duration = Duration::from_secs(3);
/// How many lines of a log are shown after a failure.
const LINES: usize = 8;

pub(super) struct Node {
    pub(super) name: String,
    pub(super) endpoint: String,
    pub(super) pid: u32,
    child: Child,
    data_dir: PathBuf,
    log: PathBuf,
}

impl Node {
    pub(super) async fn tracker(folder: &Path) -> Result<Self, Failure> {
        let config = "[tracker]\ndata_dir = \"tracker\"\nlease = \"10s\"\n".to_owned();
        Self::start(folder, "tracker", "tracker", "tracker", config).await
    }

    /// A peer, held to `limit` bytes a second.
    pub(super) async fn peer(
        folder: &Path,
        number: u32,
        tracker: &str,
        limit: Option<u64>,
    ) -> Result<Self, Failure> {
        let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| format!("{limit}B/s"));
        let config = format!(
            "[peer]\ndata_dir = \"peer-{number}\"\ntrackers = [\"{tracker}\"]\n[limits]\ndownload = \"{limit}\"\n"
        );
        let data_dir = format!("peer-{number}");
        Self::start(folder, &format!("peer {number}"), &data_dir, "peer", config).await
    }

    async fn start(
        folder: &Path,
        name: &str,
        data_dir: &str,
        command: &str,
        config: String,
    ) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::from(error).context(format!("{name} cannot be started"));
        let listen = match command {
            "tracker" => "\"zmq://127.0.0.1:0\"",
            _ => "\"tcp://127.0.0.1:0\", \"zmq://127.0.0.1:0\"",
        };
        let config = format!("{config}[transport]\nlisten = [{listen}]\n");
        let file = folder.join(format!("{data_dir}.toml"));
        let log = folder.join(format!("{data_dir}.log"));
        tokio::fs::write(&file, config).await.map_err(failed)?;
        let mut process = Process::new(std::env::current_exe().map_err(failed)?);
        // What the user has set for nodes of their own is not meant for these.
        for (variable, _) in std::env::vars_os() {
            if variable.to_str().is_some_and(|variable| variable.starts_with("ENJAMBRE_")) {
                process.env_remove(variable);
            }
        }
        // What a node that is killed leaves behind goes with the folder. Where paths are too long for sockets, both
        // sides have to look for the control socket in the same place.
        let data_dir = folder.join(data_dir);
        if socket::path(&data_dir).starts_with(&data_dir) {
            let temporary = folder.join("t");
            tokio::fs::create_dir_all(&temporary).await.map_err(failed)?;
            process.env("TMPDIR", temporary);
        }
        let mut child = process
            .arg(command)
            .arg("--config")
            .arg(&file)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(failed)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        let stdout = child.stdout.take().ok_or_else(|| Failure::failed("a child process has no output"))?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, endpoint)) = line.split_once("listening on ") {
                    return Some(endpoint.to_owned());
                }
            }
            None
        };
        let mut node = Self { name: name.to_owned(), endpoint: String::new(), pid, child, data_dir, log };
        match timeout(READY, ready).await {
            Ok(Some(endpoint)) => node.endpoint = endpoint,
            _ => {
                node.show_log();
                return Err(Failure::failed(format!("{name} does not start")));
            }
        }
        Ok(node)
    }

    /// Lets the peer run a command.
    pub(super) async fn run(
        &self,
        command: Command,
        show: &mut (dyn FnMut(Event) + Send),
    ) -> Result<(), Failure> {
        let attached = attach(&self.data_dir)
            .await
            .map_err(|error| Failure::from(error).context(format!("{} takes no commands", self.name)))?;
        match attached.run(command, show).await {
            Outcome::Ended(result) => result,
            Outcome::OwnerGone => Err(Failure::failed(format!("{} went away", self.name))),
        }
    }

    /// The hard way.
    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// The orderly way, and the hard one if it takes too long.
    pub(super) async fn stop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        if !asked || timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    /// Shows the end of its log.
    pub(super) fn show_log(&self) {
        let Ok(text) = std::fs::read_to_string(&self.log) else { return };
        let lines: Vec<_> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            note(&format!("  {}: {}", self.name, plain(line)));
        }
    }
}
