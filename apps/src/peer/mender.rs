//! Fetches again what rotted on the disk: pieces of the library's own content that were found to be damaged.
//!
//! Files of the user that are linked are not touched: they are withdrawn, and `get` fetches them again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::download::downloader::Downloader;
use enjambre_core::download::source::ProviderSource;
use enjambre_core::download::wanted::Wanted;
use enjambre_core::library::entry::LibraryEvent;
use enjambre_core::library::library::Library;
use enjambre_core::library::output::Destination;
use enjambre_core::model::id::FileId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

/// The pause before what nobody had is tried again; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Follows the events of a library.
#[derive(Debug)]
pub struct Mender {
    library: Arc<Library>,
    events: Receiver<LibraryEvent>,
    damaged: BTreeSet<FileId>,
    pause: Duration,
}

impl Mender {
    /// Misses nothing that happens from now on.
    pub fn new(library: Arc<Library>) -> Self {
        let events = library.events();
        Self { library, events, damaged: BTreeSet::new(), pause: FIRST_PAUSE }
    }

    /// Fetches what is damaged, one file after the other, until the library is closed.
    pub async fn run(mut self, downloader: &Downloader, providers: Arc<dyn ProviderSource>) {
        let mut again = None;
        loop {
            let begin = !self.damaged.is_empty();
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(LibraryEvent::Damaged(id)) => {
                        self.damaged.insert(id);
                        self.pause = FIRST_PAUSE;
                        again = None;
                        self.mend(downloader, &providers).await;
                    }
                    // What was missed is found when it is read again.
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if begin && again.is_some() => {
                    again = None;
                    self.mend(downloader, &providers).await;
                }
            }
            if !self.damaged.is_empty() && again.is_none() {
                again = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    async fn mend(&mut self, downloader: &Downloader, providers: &Arc<dyn ProviderSource>) {
        for id in self.damaged.clone() {
            let entry = self.library.entry(&id).filter(|entry| !entry.is_complete() && !entry.withdrawn);
            let (Some(entry), Some(announced_as)) = (entry, self.library.announced_as(&id)) else {
                // Removed, or fetched meanwhile.
                self.damaged.remove(&id);
                continue;
            };
            let download = downloader.get(Wanted {
                id,
                name: None,
                kind: entry.kind,
                member_of: None,
                claimed_size: Some(entry.size),
                proven_size: Some(entry.size),
                destination: Destination::Library,
                announced_as,
                providers: Arc::clone(providers),
            });
            match download.wait().await {
                Ok(()) => {
                    tracing::info!(%id, "what was damaged has been fetched again");
                    self.damaged.remove(&id);
                }
                Err(error) => tracing::info!(%id, %error, "what is damaged is fetched again later"),
            }
        }
    }
}
