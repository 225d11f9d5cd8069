//! Announces changes of the library to trackers.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::library::entry::LibraryEvent;
use crate::library::library::Library;
use crate::tracker_client::presence::Presence;
use enjambre_core::{FileId, Offer};

/// Announces the files of a library.
#[derive(Debug)]
pub struct Announcer {
    library: Arc<Library>,
    presence: Arc<Presence>,
    events: Receiver<LibraryEvent>,
    /// The announced files, to detect removals whose event was lost.
    announced: BTreeSet<FileId>,
}

impl Announcer {
    /// Creates an announcer that handles all events from now on.
    pub fn new(library: Arc<Library>, presence: Arc<Presence>) -> Self {
        let events = library.events();
        let announced = library.offers().into_iter().map(|offer| offer.id).collect();
        Self { library, presence, events, announced }
    }

    /// Announces until the library is closed.
    pub async fn run(mut self) {
        loop {
            match self.events.recv().await {
                Ok(LibraryEvent::Added(id) | LibraryEvent::Completed(id)) => self.offer(id),
                // Reported by `Added` too; handled by the repair.
                Ok(LibraryEvent::Damaged(_)) => {}
                Ok(LibraryEvent::Withdrawn(id) | LibraryEvent::Removed(id)) => self.withdraw(id),
                Err(RecvError::Lagged(_)) => self.synchronize(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn offer(&mut self, id: FileId) {
        match self.library.entry(&id) {
            Some(entry) if entry.withdrawn => self.withdraw(id),
            // Files without a name are members of collections and are not announced.
            Some(entry) if entry.name.is_some() => {
                self.announced.insert(id);
                self.presence.offer(Offer { id, size: entry.size, complete: entry.is_complete() });
            }
            _ => {}
        }
    }

    fn withdraw(&mut self, id: FileId) {
        if self.announced.remove(&id) {
            self.presence.withdraw(id);
        }
    }

    fn synchronize(&mut self) {
        let offers = self.library.offers();
        let now: BTreeSet<_> = offers.iter().map(|offer| offer.id).collect();
        for removed in self.announced.difference(&now) {
            self.presence.withdraw(*removed);
        }
        for offer in offers {
            self.presence.offer(offer);
        }
        self.announced = now;
    }
}
