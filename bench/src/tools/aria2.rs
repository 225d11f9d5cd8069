//! aria2, over BitTorrent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use enjambre_tests::process::Process;
use enjambre_tests::wait::{TIMEOUT, wait_for};

use super::{Run, Source, Task, Tool, free_port, http};
use crate::process::{Finish, Work, output_of};

#[derive(Debug)]
pub(super) struct Aria2;

impl Tool for Aria2 {
    fn name(&self) -> &'static str {
        "aria2"
    }

    fn version(&self) -> Result<String> {
        let text = output_of(Command::new("aria2c").arg("--version"))?;
        Ok(text.split_whitespace().nth(2).unwrap_or_default().to_owned())
    }

    fn can(&self, task: Task) -> bool {
        !matches!(task, Task::Publish | Task::Serve)
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let parent = run.content.path.parent().unwrap_or(Path::new("/"));
        let rpc = free_port()?;
        let mut command = aria2(parent, &run.content.torrent)?;
        command.args(["--bt-seed-unverified=true", "--seed-ratio=0.0", "--enable-rpc=true"]);
        command.arg(format!("--rpc-listen-port={rpc}"));
        if let Some(bytes) = run.upload {
            command.arg(format!("--max-overall-upload-limit={bytes}"));
        }
        let process = Process::start_command(run.folder, command);
        wait_for("aria2 to announce itself", TIMEOUT, || run.swarm_tracker.count() == 1);
        Ok(Box::new(Seeder {
            process,
            folder: run.folder.to_owned(),
            torrent: run.content.torrent.clone(),
            name: run.content.name().to_owned(),
            rpc,
        }))
    }
}

fn aria2(folder: &Path, torrent: &Path) -> Result<Command> {
    let mut command = Command::new("aria2c");
    command.args(["--no-conf=true", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"]);
    command.args(["--summary-interval=0", "--console-log-level=notice", "--file-allocation=falloc"]);
    command.arg(format!("--listen-port={}", free_port()?));
    command.arg(format!("--dir={}", folder.display())).arg(torrent);
    Ok(command)
}

struct Seeder {
    process: Process,
    folder: PathBuf,
    torrent: PathBuf,
    name: String,
    rpc: u16,
}

impl Source for Seeder {
    fn pids(&mut self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn fetch(&mut self, _number: usize, target: &Path) -> Result<Work> {
        let mut command = aria2(target, &self.torrent)?;
        command.arg("--seed-ratio=0.0");
        // It keeps what it says to itself until it ends, but runs a program when it has everything.
        let hook = target.with_extension("hook");
        fs::write(&hook, "#!/bin/sh\necho complete\n")?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        command.arg(format!("--on-bt-download-complete={}", hook.display()));
        let finish = Finish::Line("complete");
        let begun = Instant::now();
        Ok(Work { process: Process::start_command(&self.folder, command), finish, begun, daemon: None })
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.join(&self.name))
    }

    fn sent(&mut self) -> Result<Option<u64>> {
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"aria2.tellActive","params":[["uploadLength"]]}"#;
        let answer = http(self.rpc, "POST", "/jsonrpc", body)?;
        let sent =
            answer["result"][0]["uploadLength"].as_str().context("aria2 does not tell what it sent")?;
        Ok(Some(sent.parse()?))
    }
}
