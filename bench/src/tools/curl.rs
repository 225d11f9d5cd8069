//! curl from nginx: plain HTTP without verification.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use enjambre_tests::process::Process;

use super::{Run, Source, Task, Tool, free_port, wait_for_port};
use crate::process::{Work, output_of};

#[derive(Debug)]
pub(super) struct Curl;

impl Tool for Curl {
    fn name(&self) -> &'static str {
        "curl from nginx (unverified)"
    }

    fn version(&self) -> Result<String> {
        let curl = output_of(Command::new("curl").arg("--version"))?;
        let nginx = output_of(Command::new("nginx").arg("-v"))?;
        let curl = curl.split_whitespace().nth(1).unwrap_or_default();
        Ok(format!("{curl}, nginx {}", nginx.rsplit('/').next().unwrap_or_default()))
    }

    fn can(&self, task: Task) -> bool {
        matches!(task, Task::File | Task::Folder)
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let (process, url) = serve(run)?;
        let mut names = Vec::new();
        if run.content.is_folder() {
            for entry in fs::read_dir(&run.content.path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        let name = run.content.name().to_owned();
        Ok(Box::new(Nginx { process, folder: run.folder.to_owned(), url, name, names }))
    }
}

/// Starts nginx. Returns the URL of the content.
pub(super) fn serve(run: &Run<'_>) -> Result<(Process, String)> {
    let port = free_port()?;
    let shared = run.content.path.parent().unwrap_or(Path::new("/"));
    let folder = run.folder.display();
    let config = run.folder.join("nginx.conf");
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
             events {{ }}\n\
             http {{ access_log off; sendfile on; keepalive_requests 1000000;\n\
             client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;\n\
             uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n\
             server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
            shared.display()
        ),
    )?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&config).arg("-p").arg(run.folder);
    let mut process = Process::start_command(run.folder, command);
    wait_for_port(port, &mut process);
    Ok((process, format!("http://127.0.0.1:{port}/{}", run.content.name())))
}

struct Nginx {
    process: Process,
    folder: PathBuf,
    url: String,
    name: String,
    /// Of the files, where a folder is fetched: HTTP has no folders.
    names: Vec<String>,
}

impl Source for Nginx {
    fn pids(&mut self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn fetch(&mut self, number: usize, target: &Path) -> Result<Work> {
        let path = target.join(&self.name);
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail"]);
        if self.names.is_empty() {
            command.arg("--output").arg(&path).arg(&self.url);
        } else {
            let line =
                |name| format!("url = \"{}/{name}\"\noutput = \"{}/{name}\"\n", self.url, path.display());
            let list = self.folder.join(format!("list-{number}"));
            fs::write(&list, self.names.iter().map(line).collect::<String>())?;
            command.arg("--create-dirs").arg("--config").arg(&list);
        }
        Ok(Work::until_exit(|| Process::start_command(&self.folder, command)))
    }

    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        Ok(target.join(&self.name))
    }
}
