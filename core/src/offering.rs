//! What the library offers and has published, as trackers want to hear it; and trackers as a source of providers.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::download::source::ProviderSource;
use crate::library::entry::Origin;
use crate::library::error::LibraryError;
use crate::library::library::Library;
use crate::model::id::FileId;
use crate::model::record::{Offer, Provider, Publication};
use crate::protocol::message::CatalogueId;
use crate::storage::error::StorageError;
use crate::tracker::error::TrackerError;
use crate::tracker::offers::OfferSource;
use crate::tracker::trackers::Trackers;

/// A library as the source of what a peer announces.
#[derive(Debug)]
pub struct LibraryOffers {
    library: Arc<Library>,
    listening: bool,
    /// For each catalogue what it had not acknowledged when it was last asked from the start.
    passes: Mutex<HashMap<CatalogueId, Vec<Publication>>>,
}

impl LibraryOffers {
    /// Without a listener nothing is offered, but what was published is still told.
    pub fn new(library: Arc<Library>, listening: bool) -> Self {
        Self { library, listening, passes: Mutex::default() }
    }
}

#[async_trait]
impl OfferSource for LibraryOffers {
    async fn offers(&self, after: Option<FileId>, limit: usize) -> Result<Vec<Offer>, StorageError> {
        if !self.listening {
            return Ok(Vec::new());
        }
        Ok(self.library.offers_after(after, limit))
    }

    async fn pending_publications(
        &self,
        catalogue: CatalogueId,
        after: Option<&Publication>,
        limit: usize,
    ) -> Result<Vec<Publication>, StorageError> {
        // What is acknowledged leaves the library's list, so a pass over it goes by the list as it was at its start.
        let mut passes = self.passes.lock();
        let pass = passes.entry(catalogue).or_default();
        let from = match after {
            None => {
                *pass = self.library.pending_publications(catalogue.0);
                0
            }
            Some(after) => {
                pass.iter().position(|publication| publication == after).map_or(pass.len(), |at| at + 1)
            }
        };
        Ok(pass[from..].iter().take(limit).cloned().collect())
    }

    async fn mark_published(
        &self,
        catalogue: CatalogueId,
        publication: &Publication,
    ) -> Result<(), StorageError> {
        match self.library.mark_published(catalogue.0, &publication.id, &publication.name).await {
            Ok(()) | Err(LibraryError::NotFound { .. }) => Ok(()),
            Err(LibraryError::Storage(error)) => Err(error),
            Err(error) => Err(StorageError::backend("note that a file is published", error)),
        }
    }

    async fn publications_of(&self, ids: &[FileId]) -> Result<Vec<Publication>, StorageError> {
        let entries = ids.iter().filter_map(|id| self.library.entry(id));
        let published = entries.filter(|entry| entry.origin == Origin::Published && entry.is_complete());
        let each = published.flat_map(|entry| {
            let (id, size, kind) = (entry.id, entry.size, entry.kind);
            entry.names.into_iter().map(move |name| Publication { name, id, size, kind })
        });
        Ok(each.collect())
    }
}

/// Trackers as the source of who has a file.
#[derive(Debug)]
pub struct TrackerProviders(pub Arc<Trackers>);

#[async_trait]
impl ProviderSource for TrackerProviders {
    async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, String> {
        match self.0.providers(id).await {
            Ok(providers) => Ok(providers),
            // Nobody ever had it as far as trackers know; that may change.
            Err(TrackerError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        }
    }
}
