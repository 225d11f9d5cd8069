//! Tells the trackers what changes in the library.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::library::entry::LibraryEvent;
use crate::library::library::Library;
use crate::model::id::FileId;
use crate::model::record::Offer;
use crate::tracker::presence::Presence;

/// Follows the events of a library.
#[derive(Debug)]
pub struct Announcer {
    library: Arc<Library>,
    presence: Arc<Presence>,
    events: Receiver<LibraryEvent>,
    /// What was announced, so that a lost event of a removal can be made up for.
    told: BTreeSet<FileId>,
}

impl Announcer {
    /// Misses nothing that happens from now on.
    pub fn new(library: Arc<Library>, presence: Arc<Presence>) -> Self {
        let events = library.events();
        let told = library.offers().into_iter().map(|offer| offer.id).collect();
        Self { library, presence, events, told }
    }

    /// Announces until the library is closed.
    pub async fn run(mut self) {
        loop {
            match self.events.recv().await {
                Ok(LibraryEvent::Added(id) | LibraryEvent::Completed(id)) => self.offer(id),
                // Told of with `Added`; see `mender`.
                Ok(LibraryEvent::Damaged(_)) => {}
                Ok(LibraryEvent::Withdrawn(id) | LibraryEvent::Removed(id)) => self.withdraw(id),
                Err(RecvError::Lagged(_)) => self.compare(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn offer(&mut self, id: FileId) {
        match self.library.entry(&id) {
            Some(entry) if entry.withdrawn => self.withdraw(id),
            // A member of a collection is not announced by itself.
            Some(entry) if entry.name.is_some() => {
                self.told.insert(id);
                self.presence.offer(Offer { id, size: entry.size, complete: entry.is_complete() });
            }
            _ => {}
        }
    }

    fn withdraw(&mut self, id: FileId) {
        if self.told.remove(&id) {
            self.presence.withdraw(id);
        }
    }

    fn compare(&mut self) {
        let offers = self.library.offers();
        let now: BTreeSet<_> = offers.iter().map(|offer| offer.id).collect();
        for gone in self.told.difference(&now) {
            self.presence.withdraw(*gone);
        }
        for offer in offers {
            self.presence.offer(offer);
        }
        self.told = now;
    }
}
