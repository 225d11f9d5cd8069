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
/// Maximum number of downloads of one file per round.
const MAX_DOWNLOADS: usize = 4;

/// Downloads damaged files of a library again.
pub struct Repair {
    downloader: Arc<Downloader>,
    providers: Arc<dyn ProviderSource>,
    events: Receiver<LibraryEvent>,
    damaged: BTreeSet<FileId>,
    backoff: Backoff,
    /// Number of previous rounds.
    rounds: usize,
}

impl Repair {
    /// Creates a repair that handles all events from now on.
    pub fn new(downloader: Arc<Downloader>, providers: Arc<dyn ProviderSource>) -> Self {
        let events = downloader.library().events();
        let backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        Self { downloader, providers, events, damaged: BTreeSet::new(), backoff, rounds: 0 }
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
            // Each collection that contains the file may have other providers, and there may be thousands of them.
            for announced_as in of_round(&announced, self.rounds) {
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
        self.rounds = self.rounds.wrapping_add(1);
    }
}

/// The elements to try in a round. Successive rounds try all of them.
fn of_round(all: &[FileId], round: usize) -> impl Iterator<Item = FileId> {
    let start = round.wrapping_mul(MAX_DOWNLOADS);
    (0..all.len().min(MAX_DOWNLOADS)).map(move |at| all[start.wrapping_add(at) % all.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_short_and_try_everything() {
        for count in [0, 1, 4, 5, 1000] {
            let all: Vec<FileId> = (0..count)
                .map(|n: u16| FileId::from_bytes([n.to_be_bytes(); 16].concat().try_into().unwrap()))
                .collect();
            let mut tried = BTreeSet::new();
            for round in 0..all.len().div_ceil(MAX_DOWNLOADS) {
                let some: BTreeSet<FileId> = of_round(&all, round).collect();
                assert_eq!(some.len(), all.len().min(MAX_DOWNLOADS));
                tried.extend(some);
            }
            assert_eq!(tried.len(), all.len());
        }
    }
}
