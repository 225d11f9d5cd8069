//! Repair of corrupt pieces: pieces in the library's own storage that turned out to be damaged are downloaded again.
//!
//! Linked files of the user are not modified. They are withdrawn, and `get` downloads them again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use crate::download::downloader::Downloader;
use crate::download::provider::ProviderSource;
use crate::download::request::DownloadRequest;
use crate::library::entry::{LibraryEvent, NewFile};
use crate::library::output::Destination;
use enjambre_core::FileId;
use enjambre_core::runtime::backoff::Backoff;

/// Bounds of the backoff after a failed repair.
const MIN_BACKOFF: Duration = Duration::from_secs(60);
const MAX_BACKOFF: Duration = Duration::from_secs(60 * 60);

/// Downloads damaged files of a library again.
pub struct Repair {
    downloader: Arc<Downloader>,
    providers: Arc<dyn ProviderSource>,
    events: Receiver<LibraryEvent>,
    damaged: BTreeSet<FileId>,
    backoff: Backoff,
}

impl Repair {
    /// Creates a repair that handles all events from now on.
    pub fn new(downloader: Arc<Downloader>, providers: Arc<dyn ProviderSource>) -> Self {
        let events = downloader.library().events();
        let backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        Self { downloader, providers, events, damaged: BTreeSet::new(), backoff }
    }

    /// Repairs damaged files, one after the other, until the library is closed.
    pub async fn run(mut self) {
        let mut retry = None;
        loop {
            let is_due = !self.damaged.is_empty() && retry.is_some();
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(LibraryEvent::Damaged(id)) => {
                        self.damaged.insert(id);
                        self.backoff.reset();
                        retry = None;
                        self.repair_all().await;
                    }
                    // A lost event repeats when the damaged piece is read again.
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if is_due => {
                    retry = None;
                    self.repair_all().await;
                }
            }
            if !self.damaged.is_empty() && retry.is_none() {
                retry = Some(Instant::now() + self.backoff.next_delay());
            }
        }
    }

    async fn repair_all(&mut self) {
        let library = self.downloader.library();
        for id in self.damaged.clone() {
            let entry = library.entry(&id).filter(|entry| !entry.is_complete() && entry.withdrawn.is_none());
            let announced = library.announced_as(&id);
            let Some(entry) = entry.filter(|_| !announced.is_empty()) else {
                // Removed, or complete again.
                self.damaged.remove(&id);
                continue;
            };
            // Each collection that contains the file may have other providers.
            for announced_as in announced {
                let download = self.downloader.get(DownloadRequest {
                    id,
                    file: NewFile { name: None, kind: entry.kind, member_of: None },
                    claimed_size: entry.size,
                    accepted_sizes: entry.size..=entry.size,
                    destination: Destination::Keep,
                    announced_as,
                    providers: Arc::clone(&self.providers),
                });
                match download.wait().await {
                    Ok(()) => {
                        tracing::info!(%id, "damaged file repaired");
                        self.damaged.remove(&id);
                        break;
                    }
                    Err(error) => tracing::info!(%id, %error, "repair failed; will retry"),
                }
            }
        }
    }
}
