//! Announces changes of the library to trackers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use crate::library::entry::LibraryEvent;
use crate::library::library::Library;
use crate::tracker_client::presence::Presence;
use enjambre_core::{FileId, Offer};

/// Time without changes of members after which their collections are announced again.
const MEMBERS_QUIET: Duration = Duration::from_secs(2);

/// Announces the files of a library.
#[derive(Debug)]
pub struct Announcer {
    library: Arc<Library>,
    presence: Arc<Presence>,
    events: Receiver<LibraryEvent>,
    /// The announced files, to detect removals whose event was lost.
    announced: BTreeSet<FileId>,
    /// Collections whose members changed, which may now be complete or incomplete.
    changed: BTreeSet<FileId>,
}

impl Announcer {
    /// Creates an announcer that handles all events from now on.
    pub fn new(library: Arc<Library>, presence: Arc<Presence>) -> Self {
        let events = library.events();
        let announced = library.offers().into_iter().map(|offer| offer.id).collect();
        Self { library, presence, events, announced, changed: BTreeSet::new() }
    }

    /// Announces until the library is closed.
    pub async fn run(mut self) {
        let mut quiet = Instant::now();
        loop {
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = sleep_until(quiet), if !self.changed.is_empty() => {
                    for collection in std::mem::take(&mut self.changed) {
                        self.offer(collection).await;
                    }
                    continue;
                }
            };
            match event {
                Ok(LibraryEvent::Added(id) | LibraryEvent::Completed(id)) => self.offer(id).await,
                // Reported by `Added` too; handled by the repair.
                Ok(LibraryEvent::Damaged(_)) => {}
                Ok(LibraryEvent::Withdrawn(id) | LibraryEvent::Removed(id)) => self.withdraw(id),
                Err(RecvError::Lagged(_)) => self.synchronize().await,
                Err(RecvError::Closed) => return,
            }
            if let Ok(event) = event {
                let collections = self.library.collections_of(&event.id());
                if !collections.is_empty() {
                    self.changed.extend(collections);
                    quiet = Instant::now() + MEMBERS_QUIET;
                }
            }
        }
    }

    async fn offer(&mut self, id: FileId) {
        match self.library.entry(&id) {
            Some(entry) if entry.withdrawn.is_some() => self.withdraw(id),
            // Files without a name are members of collections and are not announced.
            Some(entry) if entry.name.is_some() => {
                self.announced.insert(id);
                let complete = entry.is_complete() && self.library.has_all_members(&id).await;
                self.presence.offer(Offer { id, size: entry.size, complete });
            }
            _ => {}
        }
    }

    fn withdraw(&mut self, id: FileId) {
        if self.announced.remove(&id) {
            self.presence.withdraw(id);
        }
    }

    async fn synchronize(&mut self) {
        let offers = self.library.offers();
        let now: BTreeSet<_> = offers.iter().map(|offer| offer.id).collect();
        for removed in self.announced.difference(&now) {
            self.presence.withdraw(*removed);
        }
        for offer in offers {
            let complete = offer.complete && self.library.has_all_members(&offer.id).await;
            self.presence.offer(Offer { complete, ..offer });
        }
        self.announced = now;
    }
}
