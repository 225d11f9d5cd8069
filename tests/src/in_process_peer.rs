//! A peer in the process of the test, for swarms with too many peers for one process each. Its library is in memory;
//! otherwise it is a regular peer that uses TCP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enjambre_core::protocol::server;
use enjambre_core::{Dialer, Endpoint, FileRecord, KeyPair, Memory, Offer, Publication};
use enjambre_swarm::download::downloader::Downloader;
use enjambre_swarm::download::request::DownloadRequest;
use enjambre_swarm::download::settings::DownloadSettings;
use enjambre_swarm::library::content::ContentStore;
use enjambre_swarm::library::entry::NewFile;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::library::output::Destination;
use enjambre_swarm::library::publish::PublishOptions;
use enjambre_swarm::peer::offers::LibraryOffers;
use enjambre_swarm::rate_limit::bandwidth::BandwidthLimit;
use enjambre_swarm::seeder::Seeder;
use enjambre_swarm::tracker_client::error::TrackerError;
use enjambre_swarm::tracker_client::offers::Acknowledgement;
use enjambre_swarm::tracker_client::presence::Presence;
use enjambre_swarm::tracker_client::trackers::Trackers;
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use tokio::task::JoinHandle;

/// A peer that runs until it is dropped.
#[derive(Debug)]
pub struct InProcessPeer {
    library: Arc<Library>,
    downloader: Downloader,
    trackers: Arc<Trackers>,
    presence: Presence,
    serving: JoinHandle<()>,
}

impl Drop for InProcessPeer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl InProcessPeer {
    /// Starts a peer that uses these trackers.
    pub async fn start(trackers: &[Endpoint], provider_timeout: Duration) -> Result<Self> {
        let shared = Shared::new(TransportSettings::default()).context("invalid transport limits")?;
        let dialer = Arc::new(Dialer::new(vec![shared.tcp()]));
        let memory = || Arc::new(Memory::new());
        let library = Library::open(memory(), ContentStore::Database(memory())).await?;
        let key = KeyPair::generate();
        let unlimited = || Arc::new(BandwidthLimit::new(None));
        let settings = DownloadSettings { provider_timeout, ..DownloadSettings::default() };
        let downloader = Downloader::new(
            Arc::clone(&library),
            Arc::clone(&dialer),
            unlimited(),
            Some(key.peer_id()),
            settings,
        );
        let seeder = Seeder::new(Arc::clone(&library), unlimited());
        let listener = dialer.bind(&"tcp://127.0.0.1:0".parse()?).await?;
        let endpoints = vec![listener.local_endpoint().clone()];
        let serving = tokio::spawn(server::serve(listener, Arc::new(seeder)));
        let trackers = Arc::new(Trackers::new(&dialer, trackers.iter().cloned()));
        let presence = Presence::start(
            None,
            key,
            endpoints,
            &trackers,
            Arc::new(LibraryOffers::new(Arc::clone(&library), true)),
        );
        Ok(Self { library, downloader, trackers, presence, serving })
    }

    /// Adds a file to the library. Returns the publication to announce with [`InProcessPeer::publish`].
    pub async fn add_file(&self, name: &str, content: &[u8]) -> Result<Publication> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        tokio::fs::write(&path, content).await?;
        let options = PublishOptions { name: Some(name.parse()?), store: true, ..PublishOptions::default() };
        let added = self.library.publish(&path, options, |_| {}).await?;
        Ok(Publication { name: added.name, id: added.id, size: added.size, kind: added.kind })
    }

    /// Publishes a file at the trackers. The caller retries after an error.
    pub async fn publish(&self, publication: &Publication) -> Result<Acknowledgement, TrackerError> {
        self.presence.publish(publication).await
    }

    /// Looks up a name at the trackers.
    pub async fn find(&self, name: &str) -> Result<FileRecord, TrackerError> {
        self.trackers.find(name).await
    }

    /// Downloads, verifies and offers a file.
    pub async fn get(&self, file: &FileRecord) -> Result<()> {
        let download = self.downloader.get(DownloadRequest {
            id: file.id,
            file: NewFile { name: Some(file.name.clone()), kind: file.kind, member_of: None },
            claimed_size: file.size,
            accepted_sizes: 0..=u64::MAX,
            destination: Destination::Library,
            announced_as: file.id,
            providers: Arc::clone(&self.trackers) as _,
        });
        download.wait().await?;
        let report = self.library.verify(&file.id).await?;
        let entry = self.library.entry(&file.id).context("the file is not in the library")?;
        ensure!(entry.is_complete(), "{report:?}");
        self.presence.offer(Offer { id: file.id, size: entry.size, complete: true });
        Ok(())
    }
}
