//! What a peer has to say to trackers, kept durably by its library.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::model::id::FileId;
use crate::model::record::{Offer, Publication};
use crate::protocol::message::CatalogueId;
use crate::storage::error::StorageError;

/// What a peer offers and what it has published.
#[async_trait]
pub trait OfferSource: Debug + Send + Sync + 'static {
    /// A page of all that the peer offers now, ascending by id: those after `after`, at most `limit`. An empty page
    /// is the end.
    async fn offers(&self, after: Option<FileId>, limit: usize) -> Result<Vec<Offer>, StorageError>;

    /// A page of the publications that this catalogue has not acknowledged, in the order in which they were made (of
    /// two with one name the later one is to be the newest version): those after `after`, which may have been
    /// acknowledged meanwhile, at most `limit`. An empty page is the end.
    async fn pending_publications(
        &self,
        catalogue: CatalogueId,
        after: Option<&Publication>,
        limit: usize,
    ) -> Result<Vec<Publication>, StorageError>;

    /// Notes durably that the catalogue acknowledged the publication.
    async fn mark_published(
        &self,
        catalogue: CatalogueId,
        publication: &Publication,
    ) -> Result<(), StorageError>;

    /// What this peer itself once published of these files, in the order in which it did. They are published again
    /// where a catalogue does not know them (any more), so a publication that this peer has replaced by a newer
    /// one of the same name is left out.
    async fn publications_of(&self, ids: &[FileId]) -> Result<Vec<Publication>, StorageError>;
}
