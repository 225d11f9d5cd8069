//! sendme, which is iroh: QUIC, encrypted, BLAKE3 like ours. Without relays, over loopback.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use enjambre_tests::process::Process;
use enjambre_tests::wait::TIMEOUT;

use super::{Run, Source, Task, Tool};
use crate::process::{Finish, Work, output_of};

#[derive(Debug)]
pub(super) struct Sendme;

impl Tool for Sendme {
    fn name(&self) -> &'static str {
        "sendme"
    }

    fn version(&self) -> Result<String> {
        let text = output_of(Command::new("sendme").arg("--version"))?;
        Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
    }

    fn can(&self, task: Task) -> bool {
        // Its downloaders do not know of each other, so a swarm would be one download many times.
        matches!(task, Task::File | Task::Folder | Task::Publish)
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let mut process = Process::start_command(run.folder, send(run));
        let ticket =
            process.wait_line(TIMEOUT, |line| line.strip_prefix("sendme receive ").map(str::to_owned));
        let name = run.content.name().to_owned();
        Ok(Box::new(Sender { process: Some(process), folder: run.folder.to_owned(), ticket, name }))
    }

    fn publish(&self, run: &Run<'_>) -> Result<(Box<dyn Source>, Work)> {
        let begun = Instant::now();
        let process = Process::start_command(run.folder, send(run));
        let work = Work { process, finish: Finish::Line("sendme receive "), begun, daemon: None };
        let idle = Sender {
            process: None,
            folder: run.folder.to_owned(),
            ticket: String::new(),
            name: run.content.name().to_owned(),
        };
        Ok((Box::new(idle), work))
    }
}

fn send(run: &Run<'_>) -> Command {
    let mut command = sendme("send", run.folder);
    command.args(["--ticket-type", "addresses"]).arg(&run.content.path);
    command
}

/// It keeps its state in the folder that it is started in.
fn sendme(side: &str, folder: &Path) -> Command {
    let mut command = Command::new("sendme");
    command.current_dir(folder).args([side, "--relay", "disabled", "--magic-ipv4-addr", "127.0.0.1:0"]);
    command.arg("--no-progress");
    command
}

struct Sender {
    process: Option<Process>,
    folder: PathBuf,
    ticket: String,
    name: String,
}

impl Source for Sender {
    fn pids(&mut self) -> Vec<u32> {
        self.process.iter().map(Process::pid).collect()
    }

    fn fetch(&mut self, _number: usize, target: &Path) -> Result<Work> {
        let mut command = sendme("receive", target);
        command.arg(&self.ticket);
        Ok(Work::until_exit(|| Process::start_command(&self.folder, command)))
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.join(&self.name))
    }
}
