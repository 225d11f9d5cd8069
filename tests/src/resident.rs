//! A peer inside of the test's own process: for tests with more peers than a machine has room for processes. Its library
//! lies in memory; all else is as it is in a peer, and goes over TCP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use enjambre_core::download::downloader::Downloader;
use enjambre_core::download::source::ProviderSource;
use enjambre_core::download::wanted::{DownloadSettings, Wanted};
use enjambre_core::library::content::ContentStore;
use enjambre_core::library::library::Library;
use enjambre_core::library::output::Destination;
use enjambre_core::library::settings::LibrarySettings;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::FileId;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::model::record::{FileRecord, Offer, Provider, Publication};
use enjambre_core::protocol::message::CatalogueId;
use enjambre_core::protocol::server;
use enjambre_core::publish::{PublishOptions, publish};
use enjambre_core::rate::RateLimit;
use enjambre_core::seeder::{Seeder, SeederSettings};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::memory::Memory;
use enjambre_core::tracker::error::TrackerError;
use enjambre_core::tracker::offers::OfferSource;
use enjambre_core::tracker::presence::{Acknowledged, Presence};
use enjambre_core::tracker::trackers::Trackers;
use enjambre_core::transport::dialer::Dialer;
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use tokio::task::JoinHandle;

/// A peer that runs until it is dropped.
#[derive(Debug)]
pub struct Resident {
    library: Arc<Library>,
    downloader: Downloader,
    trackers: Arc<Trackers>,
    presence: Presence,
    serving: JoinHandle<()>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What the library offers. Publications are made again by whoever made them, so none wait here.
#[derive(Debug)]
struct Offers(Arc<Library>);

#[async_trait]
impl OfferSource for Offers {
    async fn offers(&self, after: Option<FileId>, limit: usize) -> Result<Vec<Offer>, StorageError> {
        Ok(self.0.offers_after(after, limit))
    }

    async fn pending_publications(
        &self,
        _catalogue: CatalogueId,
        _after: Option<&Publication>,
        _limit: usize,
    ) -> Result<Vec<Publication>, StorageError> {
        Ok(Vec::new())
    }

    async fn mark_published(&self, _: CatalogueId, _: &Publication) -> Result<(), StorageError> {
        Ok(())
    }

    async fn publications_of(&self, _ids: &[FileId]) -> Result<Vec<Publication>, StorageError> {
        Ok(Vec::new())
    }
}

#[derive(Debug)]
struct Providers(Arc<Trackers>);

#[async_trait]
impl ProviderSource for Providers {
    async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, String> {
        self.0.providers(id).await.map_err(|error| error.to_string())
    }
}

impl Resident {
    /// Starts a peer of these trackers.
    pub async fn start(trackers: &[Endpoint], patience: Duration) -> Result<Self> {
        let shared = Shared::new(TransportSettings::default()).context("the limits make sense")?;
        let dialer = Arc::new(Dialer::new(vec![shared.tcp()]));
        let memory = || Arc::new(Memory::new());
        let library =
            Library::open(memory(), ContentStore::Database(memory()), LibrarySettings::default()).await?;
        let key = KeyPair::generate();
        let unlimited = || Arc::new(RateLimit::new(None));
        let settings = DownloadSettings { patience, ..DownloadSettings::default() };
        let downloader = Downloader::new(
            Arc::clone(&library),
            Arc::clone(&dialer),
            unlimited(),
            Some(key.peer_id()),
            settings,
        );
        let seeder = Seeder::new(Arc::clone(&library), unlimited(), SeederSettings::default());
        let listener = dialer.bind(&"tcp://127.0.0.1:0".parse()?).await?;
        let endpoints = vec![listener.local_endpoint().clone()];
        let serving = tokio::spawn(server::serve(listener, Arc::new(seeder)));
        let trackers = Arc::new(Trackers::new(&dialer, trackers.iter().cloned()));
        let presence = Presence::start(key, endpoints, &trackers, Arc::new(Offers(Arc::clone(&library))));
        Ok(Self { library, downloader, trackers, presence, serving })
    }

    /// Takes a file of this content into the library.
    pub async fn keep(&self, name: &str, content: &[u8]) -> Result<Publication> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        tokio::fs::write(&path, content).await?;
        let options = PublishOptions { name: Some(name.parse()?), store: true };
        let kept = publish(&self.library, &path, options, |_| {}).await?;
        Ok(Publication { name: kept.name, id: kept.id, size: kept.size, kind: kept.kind })
    }

    /// Tells the trackers of a publication; whether it is made again after a failure is the caller's matter.
    pub async fn publish(&self, publication: &Publication) -> Result<Acknowledged, TrackerError> {
        self.presence.publish(publication).await
    }

    /// What the trackers have under a name.
    pub async fn find(&self, name: &str) -> Result<FileRecord, TrackerError> {
        self.trackers.find(name).await
    }

    /// Downloads a file, offers it from then on, and compares all of it with its id.
    pub async fn get(&self, file: &FileRecord) -> Result<()> {
        let download = self.downloader.get(Wanted {
            id: file.id,
            name: Some(file.name.clone()),
            kind: file.kind,
            member_of: None,
            claimed_size: Some(file.size),
            proven_size: None,
            destination: Destination::Library,
            announced_as: file.id,
            providers: Arc::new(Providers(Arc::clone(&self.trackers))),
        });
        download.wait().await?;
        let report = self.library.verify(&file.id).await?;
        let entry = self.library.entry(&file.id).context("it is in the library")?;
        ensure!(entry.is_complete(), "{report:?}");
        self.presence.offer(Offer { id: file.id, size: entry.size, complete: true });
        Ok(())
    }
}
