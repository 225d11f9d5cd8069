//! rqbit, over BitTorrent. It takes no peers on loopback from a tracker, so each is told of those before it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use enjambre_tests::process::Process;
use enjambre_tests::wait::{TIMEOUT, wait_until};

use super::{Run, Source, Task, Tool, free_port, http};
use crate::process::{Finish, Work, output_of};

#[derive(Debug)]
pub(super) struct Rqbit;

impl Tool for Rqbit {
    fn name(&self) -> &'static str {
        "rqbit"
    }

    fn version(&self) -> Result<String> {
        let text = output_of(Command::new("rqbit").arg("--version"))?;
        Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
    }

    fn can(&self, task: Task) -> bool {
        !matches!(task, Task::Publish | Task::Serve)
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let (port, api) = (free_port()?, free_port()?);
        let mut command = rqbit(port);
        command.arg(format!("--http-api-listen-addr=127.0.0.1:{api}"));
        if let Some(bytes) = run.upload {
            command.arg(format!("--ratelimit-upload={bytes}"));
        }
        let folder = run.content.path.parent().unwrap_or(Path::new("/"));
        command.args(["download", "--overwrite", "--output-folder"]).arg(folder).arg(&run.content.torrent);
        let process = Process::start_command(run.folder, command);
        wait_until("rqbit to have checked the file", TIMEOUT, || {
            let stats = http(api, "GET", "/torrents/0/stats/v1", "").ok()?;
            (stats["finished"] == true && stats["state"] == "live").then_some(())
        });
        Ok(Box::new(Seeder {
            process,
            folder: run.folder.to_owned(),
            torrent: run.content.torrent.clone(),
            name: run.content.name().to_owned(),
            api,
            ports: vec![port],
        }))
    }
}

fn rqbit(port: u16) -> Command {
    let mut command = Command::new("rqbit");
    command.args(["--disable-dht", "--disable-lsd", "--disable-upnp-port-forward", "--disable-trackers"]);
    command.args(["--ipv4-only", "--listen-ip=127.0.0.1", &format!("--listen-port={port}")]);
    command
}

struct Seeder {
    process: Process,
    folder: PathBuf,
    torrent: PathBuf,
    name: String,
    api: u16,
    /// Of all peers so far.
    ports: Vec<u16>,
}

impl Source for Seeder {
    fn pids(&mut self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn fetch(&mut self, _number: usize, target: &Path) -> Result<Work> {
        let port = free_port()?;
        let peers: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        self.ports.push(port);
        let mut command = rqbit(port);
        command.args(["download", "--disable-http-api", &format!("--initial-peers={}", peers.join(","))]);
        command.arg("--output-folder").arg(target).arg(&self.torrent);
        // What it says counts, as it stays for the others.
        let finish = Finish::Line("torrent finished downloading");
        let begun = Instant::now();
        Ok(Work { process: Process::start_command(&self.folder, command), finish, begun, daemon: None })
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.join(&self.name))
    }

    fn sent(&mut self) -> Result<Option<u64>> {
        let stats = http(self.api, "GET", "/torrents/0/stats/v1", "")?;
        Ok(Some(stats["uploaded_bytes"].as_u64().context("rqbit does not tell what it sent")?))
    }
}
