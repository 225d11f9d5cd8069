//! libtorrent, through its Python module. What Python takes to start is not counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use enjambre_tests::process::Process;
use enjambre_tests::wait::{TIMEOUT, wait_for};

use super::{Run, Source, Task, Tool};
use crate::process::{Finish, Work, output_of};

const SCRIPT: &str = include_str!("libtorrent.py");

#[derive(Debug)]
pub(super) struct Libtorrent;

impl Tool for Libtorrent {
    fn name(&self) -> &'static str {
        "libtorrent"
    }

    fn version(&self) -> Result<String> {
        output_of(python().arg("version"))
    }

    fn can(&self, task: Task) -> bool {
        task != Task::Serve
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let mut command = python();
        command
            .arg("seed")
            .arg(&run.content.torrent)
            .arg(run.content.path.parent().unwrap_or(Path::new("/")));
        command.arg(run.upload.unwrap_or_default().to_string());
        let process = Process::start_command(run.folder, command);
        wait_for("libtorrent to announce itself", TIMEOUT, || run.swarm_tracker.count() == 1);
        Ok(Box::new(Session {
            process,
            folder: run.folder.to_owned(),
            torrent: run.content.torrent.clone(),
            name: run.content.name().to_owned(),
        }))
    }

    fn publish(&self, run: &Run<'_>) -> Result<(Box<dyn Source>, Work)> {
        let mut command = python();
        command.arg("create").arg(&run.content.path).arg(run.folder.join("new.torrent"));
        Ok((Box::new(NoSource), ready(Process::start_command(run.folder, command))))
    }
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]);
    command
}

/// The clock starts when the module is loaded.
fn ready(mut process: Process) -> Work {
    process.wait_line(TIMEOUT, |line| (line == "ready").then_some(()));
    Work { process, finish: Finish::Line("complete"), begun: Instant::now(), daemon: None }
}

struct Session {
    process: Process,
    folder: PathBuf,
    torrent: PathBuf,
    name: String,
}

impl Source for Session {
    fn pids(&mut self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn fetch(&mut self, _number: usize, target: &Path) -> Result<Work> {
        let mut command = python();
        command.arg("get").arg(&self.torrent).arg(target);
        Ok(ready(Process::start_command(&self.folder, command)))
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.join(&self.name))
    }

    fn sent(&mut self) -> Result<Option<u64>> {
        // What it has printed meanwhile is older than this question.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let sent = self.process.wait_line(TIMEOUT, |line| {
            let (sent, at) = line.strip_prefix("sent ")?.split_once(' ')?;
            if at.parse::<f64>().ok()? < now { None } else { sent.parse().ok() }
        });
        Ok(Some(sent))
    }
}

/// No other process is needed.
struct NoSource;

impl Source for NoSource {
    fn pids(&mut self) -> Vec<u32> {
        Vec::new()
    }

    fn fetch(&mut self, _number: usize, _target: &Path) -> Result<Work> {
        anyhow::bail!("no source offers it")
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.to_owned())
    }
}
