//! A file over HTTP to a client that drops it: from nginx, and from the gateway of a peer that has all of it.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::setup::Setup;

use super::curl::{self, Curl};
use super::{Enjambre, Run, Source, Task, Tool, Variant};
use crate::process::Work;

/// A server of files over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpServer {
    /// nginx, with `sendfile`.
    Nginx,
    /// A peer with an HTTP listener.
    Gateway,
}

impl Tool for HttpServer {
    fn name(&self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Gateway => "enjambre gateway",
        }
    }

    fn version(&self) -> Result<String> {
        match self {
            Self::Nginx => Curl.version(),
            Self::Gateway => Enjambre(Variant::Tcp).version(),
        }
    }

    fn can(&self, task: Task) -> bool {
        task == Task::Serve
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let name = run.content.name().to_owned();
        let (pid, url, server): (_, _, Box<dyn Any>) = match self {
            Self::Nginx => {
                let (process, url) = curl::serve(run)?;
                (process.pid(), url, Box::new(process))
            }
            Self::Gateway => {
                let world = World::new_in(run.folder, Setup::default());
                let tracker = world.tracker("tracker");
                let settings = [Variant::Tcp.listen(), "http.listen=[\"127.0.0.1:0\"]"];
                let mut peer = world.running_peer_with("peer", &[&tracker], &settings);
                let url = format!("http://{}/files/{name}", peer.http_address());
                peer.publish(&run.content.path, &[]);
                // The processes go before the folder that they work in.
                (peer.pid(), url, Box::new((peer, tracker, world)))
            }
        };
        Ok(Box::new(Server { pid, url, name, folder: run.folder.to_owned(), _server: server }))
    }
}

struct Server {
    pid: u32,
    url: String,
    name: String,
    folder: PathBuf,
    _server: Box<dyn Any>,
}

impl Server {
    fn curl(&self, output: &Path) -> Process {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--output"]).arg(output).arg(&self.url);
        Process::start_command(&self.folder, command)
    }
}

impl Source for Server {
    fn pids(&mut self) -> Vec<u32> {
        vec![self.pid]
    }

    fn fetch(&mut self, _number: usize, _target: &Path) -> Result<Work> {
        Ok(Work::until_exit(|| self.curl(Path::new("/dev/null"))))
    }

    /// Fetches the file once more, for the comparison.
    fn arrived(&mut self, _number: usize, target: &Path) -> Result<PathBuf> {
        let path = target.join(&self.name);
        let output = self.curl(&path).wait(crate::process::DEADLINE);
        ensure!(output.status == Some(0), "{}", output.stderr);
        Ok(path)
    }
}
