//! Enjambre itself: a tracker, a peer that has published the content, and `get` on peers of their own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use enjambre_tests::binary;
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::setup::{Setup, Wire};

use super::{Run, Source, Task, Tool};
use crate::process::{DEADLINE, Finish, Work, output_of};

/// How Enjambre is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// To a file, over `tcp://`.
    Tcp,
    /// To a file, over `zmq://`.
    Zmq,
    /// To a file, over `tcps://`, the tracker over `zmqs://`.
    Tcps,
    /// Into the library, over `tcp://`, with content in SQLite.
    Database,
    /// To a file, over `tcp://`, until it survives a power cut.
    Synced,
    /// Into the library, over `tcp://`, until it survives a power cut.
    DatabaseSynced,
}

impl Variant {
    /// The setting for where its peers listen.
    pub(crate) fn listen(self) -> &'static str {
        match self {
            Self::Zmq => "transport.listen=[\"zmq://127.0.0.1:0\"]",
            Self::Tcps => "transport.listen=[\"tcps://127.0.0.1:0\"]",
            _ => "transport.listen=[\"tcp://127.0.0.1:0\", \"zmq://127.0.0.1:0\"]",
        }
    }

    /// Whether `get` writes to a path of the user.
    pub(crate) fn is_to_file(self) -> bool {
        !matches!(self, Self::Database | Self::DatabaseSynced)
    }

    fn is_synced(self) -> bool {
        matches!(self, Self::Synced | Self::DatabaseSynced)
    }
}

/// Enjambre, used in one way.
#[derive(Debug)]
pub(crate) struct Enjambre(pub(crate) Variant);

impl Tool for Enjambre {
    fn name(&self) -> &'static str {
        match self.0 {
            Variant::Tcp => "enjambre tcp",
            Variant::Zmq => "enjambre zmq",
            Variant::Tcps => "enjambre tcps, encrypted",
            Variant::Database => "enjambre tcp, into SQLite",
            Variant::Synced => "enjambre tcp, --sync",
            Variant::DatabaseSynced => "enjambre tcp, into SQLite, --sync",
        }
    }

    fn version(&self) -> Result<String> {
        let text = output_of(std::process::Command::new(binary::enjambre()).arg("--version"))?;
        Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
    }

    fn can(&self, task: Task) -> bool {
        task == Task::File || (self.0 == Variant::Tcp && task != Task::Serve)
    }

    fn offer(&self, run: &Run<'_>) -> Result<Box<dyn Source>> {
        let source = self.start(run);
        source.first.publish(&run.content.path, &[]);
        Ok(Box::new(source))
    }

    fn publish(&self, run: &Run<'_>) -> Result<(Box<dyn Source>, Work)> {
        let mut source = self.start(run);
        let args = [OsStr::new("publish"), run.content.path.as_os_str()];
        let mut work = Work::until_exit(|| source.first.spawn(args));
        work.daemon = Some(source.first.pid());
        Ok((Box::new(source), work))
    }
}

impl Enjambre {
    fn start(&self, run: &Run<'_>) -> Swarm {
        let wire = if self.0 == Variant::Tcps { Wire::Secure } else { Wire::Default };
        let world = World::new_in(run.folder, Setup { wire, ..Setup::default() });
        let tracker = world.tracker("tracker");
        let upload = run.upload.map(|bytes| format!("limits.upload=\"{bytes}B/s\""));
        let mut settings = vec![self.0.listen()];
        settings.extend(upload.as_deref());
        let first = world.running_peer_with("source", &[&tracker], &settings);
        // Where peers help each other, they stay when they have everything, as those of the others do.
        let others = (0..run.downloads)
            .map(|number| {
                let mut peer = world.peer_with(&format!("peer-{number}"), &[&tracker], &[self.0.listen()]);
                if run.downloads > 1 {
                    peer.start();
                }
                peer
            })
            .collect();
        Swarm { variant: self.0, tracker, first, others, name: run.content.name().to_owned(), _world: world }
    }
}

// The processes go before the folder that they work in.
struct Swarm {
    variant: Variant,
    tracker: Tracker,
    first: Peer,
    others: Vec<Peer>,
    name: String,
    _world: World,
}

impl Source for Swarm {
    fn pids(&mut self) -> Vec<u32> {
        vec![self.first.pid(), self.tracker.pid()]
    }

    fn fetch(&mut self, number: usize, target: &Path) -> Result<Work> {
        let is_daemon = self.others.len() > 1;
        let peer = &mut self.others[number];
        let path = target.join(&self.name);
        let mut args = vec![OsStr::new("get"), self.name.as_ref()];
        if self.variant.is_to_file() {
            args.extend([OsStr::new("-o"), path.as_os_str()]);
        }
        if self.variant.is_synced() {
            args.push("--sync".as_ref());
        }
        let begun = Instant::now();
        let process = peer.spawn(args);
        Ok(Work { process, finish: Finish::Exit, begun, daemon: is_daemon.then(|| peer.pid()) })
    }

    fn arrived(&mut self, number: usize, target: &Path) -> Result<PathBuf> {
        let path = target.join(&self.name);
        if !self.variant.is_to_file() {
            let args = [OsStr::new("export"), self.name.as_ref(), OsStr::new("-o"), path.as_os_str()];
            self.others[number].spawn(args).wait(DEADLINE).ok();
        }
        Ok(path)
    }

    fn sent(&mut self) -> Result<Option<u64>> {
        Ok(Some(self.first.sent()))
    }
}
