//! rsync, from its own daemon, without its delta algorithm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use enjambre_tests::process::Process;

use super::{Run, Source, Task, Tool, free_port, wait_for_port};
use crate::process::{Work, output_of};

#[derive(Debug)]
pub(super) struct Rsync;

impl Tool for Rsync {
    fn name(&self) -> &'static str {
        "rsync"
    }

    fn version(&self) -> Result<String> {
        let text = output_of(Command::new("rsync").arg("--version"))?;
        Ok(text.split_whitespace().nth(2).unwrap_or_default().to_owned())
    }

    fn can(&self, task: Task) -> bool {
        matches!(task, Task::File | Task::Folder)
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let config = run.folder.join("rsyncd.conf");
        let shared = run.content.path.parent().unwrap_or(Path::new("/"));
        let text = format!(
            "use chroot = no\nlog file = /dev/null\n[m]\npath = {}\nread only = yes\n",
            shared.display()
        );
        fs::write(&config, text)?;
        let port = free_port()?;
        let mut command = Command::new("rsync");
        command.args([
            "--daemon",
            "--no-detach",
            "--address=127.0.0.1",
            &format!("--port={port}"),
            "--config",
        ]);
        let mut process = Process::start_command(run.folder, {
            command.arg(&config);
            command
        });
        wait_for_port(port, &mut process);
        let url = format!("rsync://127.0.0.1:{port}/m/{}", run.content.name());
        Ok(Box::new(Daemon {
            process,
            folder: run.folder.to_owned(),
            url,
            name: run.content.name().to_owned(),
        }))
    }
}

struct Daemon {
    process: Process,
    folder: PathBuf,
    url: String,
    name: String,
}

impl Source for Daemon {
    fn pids(&mut self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn fetch(&mut self, _number: usize, target: &Path) -> Result<Work> {
        let mut command = Command::new("rsync");
        command.args(["--archive", "--whole-file", &self.url]).arg(target);
        Ok(Work::until_exit(|| Process::start_command(&self.folder, command)))
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.join(&self.name))
    }
}
