//! A peer of a simulation: put together as the program does it, on disks that outlive its process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::announcer::Announcer;
use enjambre_core::download::downloader::Downloader;
use enjambre_core::download::wanted::DownloadSettings;
use enjambre_core::library::content::ContentStore;
use enjambre_core::library::file::LibraryFile;
use enjambre_core::library::library::Library;
use enjambre_core::library::settings::LibrarySettings;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::{FileId, PeerId};
use enjambre_core::model::identity::KeyPair;
use enjambre_core::model::record::FileKind;
use enjambre_core::offering::{LibraryOffers, TrackerProviders};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::rate::RateLimit;
use enjambre_core::seeder::{Seeder, SeederSettings};
use enjambre_core::storage::Storage;
use enjambre_core::storage::fault::FaultyStorage;
use enjambre_core::storage::memory::Disk;
use enjambre_core::tracker::presence::Presence;
use enjambre_core::tracker::trackers::Trackers;
use enjambre_core::transport::dialer::Dialer;
use enjambre_core::transport::fault::{FaultTransport, Faults};
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::transport::{Listener, Transport};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::faults::{DiskFaults, cut_off};
use super::flaw::Flaw;
use super::line::Line;
use super::manners::Liar;
use super::model::{Original, file_id};
use super::trace::Trace;

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// Its name, which is its host.
    pub name: String,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Whether it lies to others.
    pub liar: bool,
    key: KeyPair,
    /// The disks of its index and its content.
    pub disks: [Disk; 2],
    running: Option<Arc<Running>>,
    tasks: Vec<JoinHandle<()>>,
}

/// A process of a peer.
#[derive(Debug)]
pub struct Running {
    /// Its files.
    pub library: Arc<Library>,
    /// Fetches files.
    pub downloader: Downloader,
    /// Its place in the swarm.
    pub presence: Arc<Presence>,
    /// Who it asks for names.
    pub trackers: Arc<Trackers>,
    /// Who it asks for providers.
    pub providers: Arc<TrackerProviders>,
    storages: [Arc<FaultyStorage>; 2],
    transport: FaultTransport,
    listener: Arc<dyn Listener>,
    ended: CancellationToken,
}

impl Peer {
    /// One that is not started yet.
    pub fn new(number: usize, liar: bool, secret: [u8; 32]) -> Self {
        let name = format!("p{number}");
        let endpoint = format!("memory://{name}:1").parse().expect("it is an endpoint");
        let disks = [Disk::new(), Disk::new()];
        Self {
            name,
            endpoint,
            liar,
            key: KeyPair::from_secret(&secret),
            disks,
            running: None,
            tasks: Vec::new(),
        }
    }

    /// Who it is.
    pub fn id(&self) -> PeerId {
        self.key.peer_id()
    }

    /// Its process, where it runs.
    pub const fn running(&self) -> Option<&Arc<Running>> {
        self.running.as_ref()
    }

    /// Starts it. Where a disk fails it stays down.
    pub async fn start(
        &mut self,
        network: &MemoryNetwork,
        trackers: &[Endpoint],
        trace: &Trace,
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
        let library = Library::open(index, store, LibrarySettings::default()).await;
        let library = library.map_err(|error| error.to_string())?;
        let ended = CancellationToken::new();
        let transport = FaultTransport::new(Flaw::network(flaw, network.transport()), seed, faults.1);
        let line: Arc<dyn Transport> =
            Arc::new(Line::new(Arc::new(transport.clone()), &self.name, trace, ended.clone()));
        let dialer = Arc::new(Dialer::new(vec![line]));
        let no_limit = || Arc::new(RateLimit::new(None));
        let downloader = Downloader::new(
            Arc::clone(&library),
            Arc::clone(&dialer),
            no_limit(),
            Some(self.id()),
            DownloadSettings::default(),
        );
        let seeder = Arc::new(Seeder::new(Arc::clone(&library), no_limit(), SeederSettings::default()));
        let listener = dialer.bind(&self.endpoint).await.map_err(|error| error.to_string())?;
        let handler: Arc<dyn Handler> = if self.liar { Arc::new(Liar::new(seeder, seed)) } else { seeder };
        let trackers = Arc::new(Trackers::new(&dialer, trackers.iter().cloned()));
        let source = Arc::new(LibraryOffers::new(Arc::clone(&library), true));
        let presence =
            Arc::new(Presence::start(self.key.clone(), vec![self.endpoint.clone()], &trackers, source));
        let providers = Arc::new(TrackerProviders(Arc::clone(&trackers)));
        let running = Arc::new(Running {
            library,
            downloader,
            presence,
            trackers,
            providers,
            storages,
            transport,
            listener,
            ended,
        });
        let announcer = Announcer::new(Arc::clone(&running.library), Arc::clone(&running.presence));
        let announce = running.ended.clone().run_until_cancelled_owned(announcer.run());
        self.tasks.push(tokio::spawn(serve(Arc::clone(&running.listener), handler)));
        self.tasks.push(tokio::spawn(async move {
            announce.await;
        }));
        self.running = Some(running);
        Ok(())
    }

    /// Work that ends with the process.
    pub fn add_task(&mut self, task: JoinHandle<()>) {
        self.tasks.retain(|task| !task.is_finished());
        self.tasks.push(task);
    }

    /// Has its disks fail so from now on.
    pub fn set_disk_faults(&self, faults: DiskFaults) {
        if let Some(running) = &self.running {
            running.storages.iter().for_each(|storage| faults.apply(storage));
        }
    }

    /// Has its way to the others fail so from now on.
    pub fn set_network_faults(&self, faults: Faults) {
        if let Some(running) = &self.running {
            running.transport.set(faults);
        }
    }

    /// Lets it reach a node, or not.
    pub fn set_reach(&self, endpoint: &Endpoint, reaches: bool) {
        let Some(running) = &self.running else { return };
        if reaches {
            running.transport.heal(endpoint);
        } else {
            running.transport.isolate(endpoint);
        }
    }

    /// As `kill -9` does.
    pub async fn kill(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.ended.cancel();
        running.storages.iter().for_each(|storage| cut_off(storage));
        // Whatever runs on finds its disks closed.
        self.disks.iter().for_each(|disk| drop(disk.open()));
        for task in self.tasks.drain(..) {
            task.abort();
            let _ended = task.await;
        }
        running.listener.shutdown(Duration::ZERO).await;
    }

    /// Ends it in order, as the program does.
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
    /// Compares what the library has in whole with the original. `Ok(false)` where it could not all be read.
    pub async fn compare(&self, id: FileId, original: &Original) -> Result<bool, String> {
        if original.kind == FileKind::File {
            return self.compare_file(id, &original.files[0].1).await;
        }
        let Ok(list) = self.library.collection(&id).await else { return Ok(false) };
        let members = list.members();
        if members.len() != original.files.len() {
            return Err(format!("the folder {} has {} files", original.name, members.len()));
        }
        let mut all = true;
        for (member, (path, content)) in members.iter().zip(&original.files) {
            if member.path.as_str() != path {
                return Err(format!(
                    "a file of the folder {} is called {}",
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
            return Err(format!("{id} has {} bytes instead of {}", layout.size(), content.len()));
        }
        let mut all = true;
        for piece in layout.pieces() {
            match file.read_piece(piece).await {
                Ok(read) => {
                    let from = layout.offset(piece) as usize;
                    if read != content[from..from + layout.len(piece)] {
                        return Err(format!("piece {} of {id} is not what was published", piece.get()));
                    }
                }
                Err(_) => all = false,
            }
        }
        Ok(all)
    }

    /// Whether it has a file, or a folder with all of its files, in whole.
    pub fn has_whole(&self, id: &FileId, original: &Original) -> bool {
        let whole = |id: &FileId| self.library.entry(id).is_some_and(|entry| entry.is_complete());
        let members = || {
            original.kind == FileKind::File
                || original.files.iter().all(|(_, content)| whole(&file_id(content)))
        };
        whole(id) && members()
    }

    /// How many pieces it has of each of its files.
    pub fn pieces(&self) -> BTreeMap<FileId, u32> {
        let entries = self.library.entries().into_iter();
        entries.filter(|entry| entry.have > 0).map(|entry| (entry.id, entry.have)).collect()
    }

    /// Whether it tells trackers that it has all of a file.
    pub fn offers_whole(&self, id: &FileId) -> bool {
        self.library.entry(id).is_some_and(|entry| entry.is_complete() && entry.name.is_some())
    }
}
