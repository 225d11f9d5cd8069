//! The parts of a node that stores files: a peer, or a tracker with replicas.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use enjambre_control::{Failure, Limits, ResultContext};
use enjambre_core::model::identity::PublicKey;
use enjambre_core::protocol::server::Handler;
use enjambre_core::runtime::clock::SystemClock;
use enjambre_core::{Dialer, KeyPair, Place, Role, Storage, Tenancy};
use enjambre_swarm::download::downloader::Downloader;
use enjambre_swarm::download::settings::DownloadSettings;
use enjambre_swarm::library;
use enjambre_swarm::library::content::ContentStore;
use enjambre_swarm::library::error::LibraryError;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::membership::gate::MembershipGate;
use enjambre_swarm::membership::member_transport::MemberTransport;
use enjambre_swarm::membership::members::Members;
use enjambre_swarm::membership::store::MembershipStore;
use enjambre_swarm::rate_limit::bandwidth::BandwidthLimit;
use enjambre_swarm::seeder::Seeder;
use tokio::time::timeout;

use crate::config::load::Loaded;
use crate::config::sections::ContentKind;
use crate::config::value::Rate;
use crate::known_database;
use crate::registry::Registry;
use crate::registry::locations::folder_of;
use crate::spool::is_same_device;

/// Shares of the shutdown time, [`crate::shutdown::LIMIT`].
const STOP_TRANSFERS: Duration = Duration::from_millis(1000);
const STOP_LIBRARY: Duration = Duration::from_millis(1500);

/// The parts of a node that stores files.
#[derive(Debug)]
pub(crate) struct PeerServices {
    pub(crate) library: Arc<Library>,
    pub(crate) downloader: Arc<Downloader>,
    pub(crate) seeder: Arc<Seeder>,
    /// The membership state, in an invite-only swarm.
    pub(crate) members: Option<Arc<Members>>,
    pub(crate) storages: Vec<Arc<dyn Storage>>,
    /// The directory to which files of the data directory are copied when they become content. `None` if they are moved, or
    /// copied to another machine.
    pub(crate) copy_dir: Option<PathBuf>,
    upload: Arc<BandwidthLimit>,
    download: Arc<BandwidthLimit>,
}

/// How the library is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseMode {
    /// Everything is synced to the disk.
    Durable,
    /// Content that was not reported as durable is not synced. The next process verifies it.
    Fast,
}

impl PeerServices {
    /// Opens the library at a place. With an `authority` files are only downloaded from members of its swarm. With `init` a
    /// database that is empty, outdated or without its content is accepted.
    pub(crate) async fn open(
        registry: &Registry,
        loaded: &Loaded,
        place: Place,
        dialer: &Arc<Dialer>,
        key: &KeyPair,
        authority: Option<PublicKey>,
        init: bool,
    ) -> Result<Self, Failure> {
        let config = &loaded.config;
        let action = format!("cannot open the library in {}", place.data_dir.display());
        let content_dir = place.data_dir.join("content");
        // A tracker fetches replicas again if their index is lost.
        let data_dir = (place.tenancy == Tenancy::Single).then(|| place.data_dir.clone());
        let index = registry.open_storage(loaded, place.clone(), Role::Records).await?;
        if let Some(data_dir) = &data_dir {
            let format = library::stored_format(&*index).await.context(&action)?;
            known_database::check(data_dir, format, &config.storage.backend, init).await?;
        }
        let mut storages = vec![Arc::clone(&index)];
        let content = match config.library.content {
            ContentKind::Database => {
                let content = registry.open_storage(loaded, place.clone(), Role::Content).await?;
                storages.push(Arc::clone(&content));
                ContentStore::Database(content)
            }
            ContentKind::Files => ContentStore::Files(content_dir.clone()),
        };
        let members = match authority {
            Some(authority) => {
                let store = MembershipStore::new(Arc::clone(&index));
                let opened =
                    Members::open(authority, key.peer_id(), Arc::new(SystemClock), Some(store)).await;
                Some(opened.context("cannot read the membership state")?)
            }
            None => None,
        };
        let dialer = match &members {
            Some(members) => Arc::new(
                dialer.wrapped(|transport| Arc::new(MemberTransport::new(transport, Arc::clone(members)))),
            ),
            None => Arc::clone(dialer),
        };
        let opened = match Library::open(Arc::clone(&index), content.clone()).await {
            Err(LibraryError::ContentMissing) => {
                let data_dir = place.data_dir.display();
                if !init {
                    let store = match config.library.content {
                        ContentKind::Database => format!("content database ({})", config.storage.backend),
                        ContentKind::Files => format!("content directory {}", content_dir.display()),
                    };
                    return Err(Failure::failed(format!(
                        "the {store} is empty, but the library in {data_dir} lists stored content; restore it, or start the node \
                         once with --init to keep only the index; then the content can be downloaded or published again"
                    )));
                }
                tracing::warn!(%data_dir, "the content of the library is missing; download or publish it again");
                library::drop_content_claims(&*index, &content).await.context(&action)?;
                Library::open(Arc::clone(&index), content).await
            }
            opened => opened,
        };
        let library = opened.context(&action)?;
        let copy_dir = match config.library.content {
            ContentKind::Database => folder_of(loaded, &place, Role::Content).await?,
            ContentKind::Files => {
                // A file is moved within a device.
                let copied =
                    move || Ok((!is_same_device(&content_dir, &place.data_dir)?).then_some(content_dir));
                crate::blocking(copied).await?
            }
        };
        if let Some(data_dir) = data_dir.filter(|_| !registry.is_volatile(loaded)) {
            known_database::record(&data_dir, &*index, &config.storage.backend).await?;
        }
        let limit = |rate: Rate| Arc::new(BandwidthLimit::new(rate.get().and_then(NonZeroU64::new)));
        let (upload, download) = (limit(config.limits.upload), limit(config.limits.download));
        let settings = DownloadSettings {
            provider_timeout: config.download.provider_timeout.get(),
            ..DownloadSettings::default()
        };
        let downloader = Downloader::new(
            Arc::clone(&library),
            dialer,
            Arc::clone(&download),
            Some(key.peer_id()),
            settings,
        );
        let seeder = Seeder::new(Arc::clone(&library), Arc::clone(&upload));
        let (downloader, seeder) = (Arc::new(downloader), Arc::new(seeder));
        Ok(Self { library, downloader, seeder, members, storages, copy_dir, upload, download })
    }

    /// Returns the bandwidth limits.
    pub(crate) fn limits(&self) -> Limits {
        Limits { upload_rate: self.upload.rate(), download_rate: self.download.rate() }
    }

    /// Sets the bandwidth limits.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.upload.set_rate(limits.upload_rate);
        self.download.set_rate(limits.download_rate);
    }

    /// Returns the databases with their names.
    #[cfg(feature = "http")]
    pub(crate) fn named_storages(&self) -> impl Iterator<Item = (&'static str, Arc<dyn Storage>)> {
        ["index", "content"].into_iter().zip(self.storages.iter().cloned())
    }

    /// Returns the handler for requests of other peers. In an invite-only swarm it only serves members.
    pub(crate) fn handler(&self) -> Arc<dyn Handler> {
        let seeder: Arc<dyn Handler> = Arc::clone(&self.seeder) as _;
        match &self.members {
            Some(members) => Arc::new(MembershipGate::new(seeder, Arc::clone(members))),
            None => seeder,
        }
    }

    /// Stops downloads and closes the library and the databases, within the shutdown time.
    pub(crate) async fn close(&self, mode: CloseMode) {
        if timeout(STOP_TRANSFERS, self.downloader.shutdown()).await.is_err() {
            tracing::warn!("stopping downloads timed out");
        }
        let close = async {
            let closed = match mode {
                CloseMode::Durable => self.library.close().await,
                CloseMode::Fast => self.library.close_without_sync().await,
            };
            if let Err(error) = closed {
                let error = Failure::from(error);
                tracing::warn!(%error, "library close failed");
            }
            for storage in &self.storages {
                if let Err(error) = storage.close().await {
                    let error = Failure::from(error);
                    tracing::warn!(%error, "database close failed");
                }
            }
        };
        if timeout(STOP_LIBRARY, close).await.is_err() {
            tracing::warn!("library close timed out; content that was not synced will be downloaded again");
        }
    }
}
