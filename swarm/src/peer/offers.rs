//! The library as the source of offers and publications, and trackers as the source of providers.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::download::provider::ProviderSource;
use crate::library::entry::{Origin, PublishedVersion};
use crate::library::error::LibraryError;
use crate::library::library::Library;
use crate::tracker_client::error::TrackerError;
use crate::tracker_client::offers::{Acknowledgement, OfferSource};
use crate::tracker_client::trackers::Trackers;
use enjambre_core::{CatalogueId, FileId, Gap, Offer, Provider, Publication, StorageError, UnixMillis};

/// The offers and publications of a library.
#[derive(Debug)]
pub struct LibraryOffers {
    library: Arc<Library>,
    listening: bool,
    /// The unacknowledged publications of each catalogue when their first page was last read.
    snapshots: Mutex<HashMap<CatalogueId, Vec<Publication>>>,
}

impl LibraryOffers {
    /// Creates a source. A peer without a listener offers no files, but its publications are still announced.
    pub fn new(library: Arc<Library>, listening: bool) -> Self {
        Self { library, listening, snapshots: Mutex::default() }
    }
}

#[async_trait]
impl OfferSource for LibraryOffers {
    async fn offers(&self, after: Option<FileId>, limit: usize) -> Result<Vec<Offer>, StorageError> {
        if !self.listening {
            return Ok(Vec::new());
        }
        let mut offers = self.library.offers_after(after, limit);
        for offer in &mut offers {
            offer.complete = offer.complete && self.library.has_all_members(&offer.id).await;
        }
        Ok(offers)
    }

    async fn pending_publications(
        &self,
        catalogue: CatalogueId,
        after: Option<&Publication>,
        limit: usize,
    ) -> Result<Vec<Publication>, StorageError> {
        // Acknowledgement publications leave the outbox, so paging uses the list at its start.
        let mut snapshots = self.snapshots.lock();
        let snapshot = snapshots.entry(catalogue).or_default();
        let from = match after {
            None => {
                *snapshot = self.library.pending_publications(catalogue);
                0
            }
            Some(after) => snapshot.iter().position(|each| each == after).map_or(snapshot.len(), |at| at + 1),
        };
        Ok(snapshot[from..].iter().take(limit).cloned().collect())
    }

    async fn mark_published(
        &self,
        publication: &Publication,
        acknowledged: Acknowledgement,
        at: UnixMillis,
    ) -> Result<(), StorageError> {
        let Acknowledgement { catalogue, version, new } = acknowledged;
        let version = PublishedVersion { version, new };
        let Publication { id, name, .. } = publication;
        in_storage(self.library.mark_published(catalogue, id, name, version, at).await)
    }

    async fn forget_acknowledgements(
        &self,
        catalogue: CatalogueId,
        gaps: &[Gap],
    ) -> Result<(), StorageError> {
        let is_lost = |at| gaps.iter().any(|gap| gap.contains(at));
        in_storage(self.library.forget_acknowledgements(catalogue, is_lost).await)
    }

    fn acknowledged_version(&self, catalogue: CatalogueId, publication: &Publication) -> Option<u64> {
        self.library.acknowledged_version(catalogue, &publication.id, &publication.name)
    }

    fn acknowledgement(&self, catalogue: CatalogueId, publication: &Publication) -> Option<Acknowledgement> {
        let PublishedVersion { version, new } =
            self.library.published_version(catalogue, &publication.id, &publication.name)?;
        Some(Acknowledgement { catalogue, version, new })
    }

    async fn publications_of(&self, ids: &[FileId]) -> Result<Vec<Publication>, StorageError> {
        let entries = ids.iter().filter_map(|id| self.library.entry(id));
        let published = entries.filter(|entry| entry.origin == Origin::Published && entry.is_complete());
        let publications = published.flat_map(|entry| {
            let (id, size, kind) = (entry.id, entry.size, entry.kind);
            entry.names.into_iter().map(move |name| Publication { name, id, size, kind })
        });
        Ok(publications.collect())
    }
}

/// The error of the storage. A file that was removed meanwhile needs no acknowledgement.
fn in_storage(result: Result<(), LibraryError>) -> Result<(), StorageError> {
    match result {
        Ok(()) | Err(LibraryError::NotFound { .. }) => Ok(()),
        Err(LibraryError::Storage(error)) => Err(error),
        Err(error) => Err(StorageError::backend("record acknowledged publications", error)),
    }
}

#[async_trait]
impl ProviderSource for Trackers {
    async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, String> {
        match Self::providers(self, id).await {
            Ok(providers) => Ok(providers),
            // A provider may announce the file later.
            Err(TrackerError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        }
    }
}
