//! A simulated peer, composed like in the program. Its disks keep their data when the process ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::storage::memory::Disk;
use enjambre_core::{Dialer, Endpoint, FileId, FileKind, Listener, PeerId, Storage};
use enjambre_swarm::download::downloader::Downloader;
use enjambre_swarm::download::settings::DownloadSettings;
use enjambre_swarm::library::content::ContentStore;
use enjambre_swarm::library::file::LibraryFile;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::peer::announcer::Announcer;
use enjambre_swarm::peer::offers::LibraryOffers;
use enjambre_swarm::peer::repair::Repair;
use enjambre_swarm::rate_limit::bandwidth::BandwidthLimit;
use enjambre_swarm::seeder::Seeder;
use enjambre_swarm::tracker_client::presence::Presence;
use enjambre_swarm::tracker_client::trackers::Trackers;
use enjambre_testkit::storage::fault::FaultyStorage;
use enjambre_testkit::transport::fault::{FaultTransport, Faults};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::faults::{DiskFaults, disconnect};
use super::flaw::Flaw;
use super::link::Link;
use super::model::{Model, Original, file_id};
use super::responder::MisbehavingSeeder;
use super::site::Site;
use super::trace::Trace;

/// A simulated peer.
#[derive(Debug)]
pub struct Peer {
    /// The name.
    pub name: String,
    /// The place in the network.
    pub site: Site,
    /// Whether the peer sends invalid data.
    pub misbehaving: bool,
    /// The disks of the library index and of the content.
    pub disks: [Disk; 2],
    running: Option<Arc<Running>>,
    tasks: Vec<JoinHandle<()>>,
}

/// A running process of a peer.
#[derive(Debug)]
pub struct Running {
    /// The library.
    pub library: Arc<Library>,
    /// The downloader.
    pub downloader: Arc<Downloader>,
    /// The sessions at the trackers.
    pub presence: Arc<Presence>,
    /// The trackers for name and provider lookups.
    pub trackers: Arc<Trackers>,
    storages: [Arc<FaultyStorage>; 2],
    transport: FaultTransport,
    listener: Arc<dyn Listener>,
    ended: CancellationToken,
}

impl Peer {
    /// Creates a peer without starting it.
    pub fn new(number: usize, misbehaving: bool, site: Site) -> Self {
        let (name, disks) = (format!("p{number}"), [Disk::new(), Disk::new()]);
        Self { name, site, misbehaving, disks, running: None, tasks: Vec::new() }
    }

    /// Returns the peer id.
    pub fn id(&self) -> PeerId {
        self.site.key.peer_id()
    }

    /// Returns the running process.
    pub const fn running(&self) -> Option<&Arc<Running>> {
        self.running.as_ref()
    }

    /// Starts the peer. After an error it is not running.
    pub async fn start(
        &mut self,
        trackers: &[Endpoint],
        trace: &Trace,
        model: &Arc<Mutex<Model>>,
        faults: (DiskFaults, Faults),
        flaw: Option<Flaw>,
        seed: u64,
    ) -> Result<(), String> {
        let open = |at: usize| {
            let seed = seed ^ (at as u64 + 1);
            let disk = Flaw::disk(flaw, Arc::new(self.disks[at].open()), seed);
            let storage = FaultyStorage::new(disk, seed);
            faults.0.apply(&storage);
            Arc::new(storage)
        };
        let storages = [open(0), open(1)];
        let [index, content] = storages.clone().map(|storage| storage as Arc<dyn Storage>);
        let store = ContentStore::Database(content);
        let library = Library::open(index, store).await;
        let library = library.map_err(|error| error.to_string())?;
        let ended = CancellationToken::new();
        let transport = FaultTransport::new(Flaw::network(flaw, self.site.transport()), seed, faults.1);
        let link = Link::transport(Arc::new(transport.clone()), &self.name, trace, model, ended.clone());
        let dialer = Arc::new(Dialer::new(vec![link]));
        let unlimited = || Arc::new(BandwidthLimit::new(None));
        let downloader = Arc::new(Downloader::new(
            Arc::clone(&library),
            Arc::clone(&dialer),
            unlimited(),
            Some(self.id()),
            DownloadSettings::default(),
        ));
        let seeder = Arc::new(Seeder::new(Arc::clone(&library), unlimited()));
        let listener = dialer.bind(&self.site.endpoint).await.map_err(|error| error.to_string())?;
        let handler: Arc<dyn Handler> =
            if self.misbehaving { Arc::new(MisbehavingSeeder::new(seeder, seed)) } else { seeder };
        let trackers = Arc::new(Trackers::new(&dialer, trackers.iter().cloned()));
        let source = Arc::new(LibraryOffers::new(Arc::clone(&library), true));
        let Site { key, endpoint, .. } = &self.site;
        let presence = Presence::start(None, key.clone(), vec![endpoint.clone()], &trackers, source);
        let presence = Arc::new(presence);
        let running = Arc::new(Running {
            library,
            downloader,
            presence,
            trackers,
            storages,
            transport,
            listener,
            ended,
        });
        let announcer = Announcer::new(Arc::clone(&running.library), Arc::clone(&running.presence));
        let announce = running.ended.clone().run_until_cancelled_owned(announcer.run());
        let repair = Repair::new(Arc::clone(&running.downloader), running.trackers.clone());
        let repair = running.ended.clone().run_until_cancelled_owned(repair.run());
        self.tasks.push(tokio::spawn(serve(Arc::clone(&running.listener), handler)));
        self.tasks.push(tokio::spawn(async move {
            announce.await;
        }));
        self.tasks.push(tokio::spawn(async move {
            repair.await;
        }));
        self.running = Some(running);
        Ok(())
    }

    /// Adds a task that ends with the process.
    pub fn add_task(&mut self, task: JoinHandle<()>) {
        self.tasks.retain(|task| !task.is_finished());
        self.tasks.push(task);
    }

    /// Sets the faults of the disks.
    pub fn set_disk_faults(&self, faults: DiskFaults) {
        if let Some(running) = &self.running {
            running.storages.iter().for_each(|storage| faults.apply(storage));
        }
    }

    /// Sets the faults of outgoing connections.
    pub fn set_network_faults(&self, faults: Faults) {
        if let Some(running) = &self.running {
            running.transport.set(faults);
        }
    }

    /// Connects the peer to a node, or isolates it from the node.
    pub fn set_reachable(&self, endpoint: &Endpoint, reachable: bool) {
        let Some(running) = &self.running else { return };
        if reachable {
            running.transport.heal(endpoint);
        } else {
            running.transport.isolate(endpoint);
        }
    }

    /// Ends the process like `kill -9`.
    pub async fn kill(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.ended.cancel();
        running.storages.iter().for_each(|storage| disconnect(storage));
        // Reopening the disks closes the handles of tasks that are still running.
        self.disks.iter().for_each(|disk| drop(disk.open()));
        for task in self.tasks.drain(..) {
            task.abort();
            let _ended = task.await;
        }
        running.listener.shutdown(Duration::ZERO).await;
    }

    /// Shuts the peer down cleanly.
    pub async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.presence.leave().await;
        running.listener.shutdown(Duration::ZERO).await;
        running.downloader.shutdown().await;
        let _closed = running.library.close().await;
        for storage in &running.storages {
            let _closed = storage.close().await;
        }
        running.ended.cancel();
        for task in self.tasks.drain(..) {
            let _ended = task.await;
        }
    }
}

impl Running {
    /// Compares the library with the original. Returns `Ok(false)` if a part cannot be read.
    pub async fn compare(&self, id: FileId, original: &Original) -> Result<bool, String> {
        if original.kind == FileKind::File {
            return self.compare_file(id, &original.files[0].1).await;
        }
        let Ok(list) = self.library.collection(&id).await else { return Ok(false) };
        let members = list.members();
        if members.len() != original.files.len() {
            return Err(format!("directory {} has {} files", original.name, members.len()));
        }
        let mut all = true;
        for (member, (path, content)) in members.iter().zip(&original.files) {
            if member.path.as_str() != path {
                return Err(format!(
                    "directory {} contains the wrong path {}",
                    original.name,
                    member.path.as_str()
                ));
            }
            all &= self.compare_file(member.id, content).await?;
        }
        Ok(all)
    }

    async fn compare_file(&self, id: FileId, content: &Bytes) -> Result<bool, String> {
        let Ok(Some(file)) = self.library.open_file(&id).await else { return Ok(false) };
        let file: Arc<LibraryFile> = file;
        let layout = file.layout();
        if layout.size() != content.len() as u64 {
            return Err(format!("{id} has {} bytes, expected {}", layout.size(), content.len()));
        }
        let mut all = true;
        for piece in layout.pieces() {
            match file.read_piece(piece).await {
                Ok(read) => {
                    let from = layout.offset(piece) as usize;
                    if read != content[from..from + layout.len(piece)] {
                        return Err(format!(
                            "piece {} of {id} differs from the published content",
                            piece.get()
                        ));
                    }
                }
                Err(_) => all = false,
            }
        }
        Ok(all)
    }

    /// Whether a file, or a directory and all of its files, is complete.
    pub fn is_complete(&self, id: &FileId, original: &Original) -> bool {
        let complete = |id: &FileId| self.library.entry(id).is_some_and(|entry| entry.is_complete());
        let members = || {
            original.kind == FileKind::File
                || original.files.iter().all(|(_, content)| complete(&file_id(content)))
        };
        complete(id) && members()
    }

    /// Returns the number of stored pieces by file.
    pub fn pieces(&self) -> BTreeMap<FileId, u32> {
        let entries = self.library.entries().into_iter();
        entries.filter(|entry| entry.have > 0).map(|entry| (entry.id, entry.have)).collect()
    }

    /// Whether the peer offers a file as complete.
    pub fn offers_complete(&self, id: &FileId) -> bool {
        self.library.entry(id).is_some_and(|entry| entry.is_complete() && entry.name.is_some())
    }
}
