//! The baseline program: the reference that all others are measured against.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use enjambre_tests::process::Process;
use enjambre_tests::wait::TIMEOUT;

use super::{Run, Source, Task, Tool};
use crate::process::Work;

#[derive(Debug)]
pub(super) struct Limit;

impl Tool for Limit {
    fn name(&self) -> &'static str {
        "baseline"
    }

    fn version(&self) -> Result<String> {
        Ok("plain sockets, BLAKE3, positioned writes".to_owned())
    }

    fn can(&self, task: Task) -> bool {
        matches!(task, Task::File | Task::Publish)
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let mut process = Process::start_command(run.folder, limit("send", &[run.content.path.as_os_str()])?);
        let address = process.wait_line(TIMEOUT, |line| line.strip_prefix("listening ").map(str::to_owned));
        let name = run.content.name().to_owned();
        Ok(Box::new(Sender { process: Some(process), folder: run.folder.to_owned(), address, name }))
    }

    fn publish(&self, run: &Run<'_>) -> Result<(Box<dyn Source>, Work)> {
        let command = limit("hash", &[run.content.path.as_os_str()])?;
        let work = Work::until_exit(|| Process::start_command(run.folder, command));
        let idle = Sender {
            process: None,
            folder: run.folder.to_owned(),
            address: String::new(),
            name: run.content.name().to_owned(),
        };
        Ok((Box::new(idle), work))
    }
}

fn limit(side: &str, args: &[&std::ffi::OsStr]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["limit", side]).args(args);
    Ok(command)
}

struct Sender {
    process: Option<Process>,
    folder: PathBuf,
    address: String,
    name: String,
}

impl Source for Sender {
    fn pids(&mut self) -> Vec<u32> {
        self.process.iter().map(Process::pid).collect()
    }

    fn fetch(&mut self, _number: usize, target: &Path) -> Result<Work> {
        let path = target.join(&self.name);
        let command = limit("receive", &[self.address.as_ref(), path.as_os_str()])?;
        Ok(Work::until_exit(|| Process::start_command(&self.folder, command)))
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.join(&self.name))
    }
}
