//! The offers and publications of a peer, which its library stores durably.

use std::fmt::Debug;

use async_trait::async_trait;

use enjambre_core::{CatalogueId, FileId, Gap, Offer, Publication, StorageError, UnixMillis};

/// The acknowledgement of a publication by a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The catalogue.
    pub catalogue: CatalogueId,
    /// The version of the name in that catalogue.
    pub version: u64,
    /// Whether the publication created this version. False if the file already was the newest version of the name.
    pub new: bool,
}

/// The source of a peer's offers and publications.
#[async_trait]
pub trait OfferSource: Debug + Send + Sync + 'static {
    /// Returns a page of the current offers in ascending order of their ids: at most `limit` after `after`. An empty page is
    /// the end.
    async fn offers(&self, after: Option<FileId>, limit: usize) -> Result<Vec<Offer>, StorageError>;

    /// Returns a page of the publications that this catalogue has not acknowledged, in chronological order, so that the later
    /// of two with the same name becomes the newest version: at most `limit` after `after`, which may have been acknowledged
    /// meanwhile. An empty page is the end.
    async fn pending_publications(
        &self,
        catalogue: CatalogueId,
        after: Option<&Publication>,
        limit: usize,
    ) -> Result<Vec<Publication>, StorageError>;

    /// Records durably that a catalogue acknowledged the publication, which removes it from the outbox of that catalogue. `at`
    /// is the time of the acknowledgement by the clock of the tracker, or a little later.
    async fn mark_published(
        &self,
        publication: &Publication,
        acknowledged: Acknowledgement,
        at: UnixMillis,
    ) -> Result<(), StorageError>;

    /// Returns to the outbox of the catalogue the publications that it acknowledged in these periods.
    async fn forget_acknowledgements(&self, catalogue: CatalogueId, gaps: &[Gap])
    -> Result<(), StorageError>;

    /// Returns the version with which the catalogue had acknowledged a publication, also if it is in its outbox again.
    fn acknowledged_version(&self, catalogue: CatalogueId, publication: &Publication) -> Option<u64>;

    /// Returns the acknowledgement by a catalogue that was recorded since the publication entered the outbox.
    fn acknowledgement(&self, catalogue: CatalogueId, publication: &Publication) -> Option<Acknowledgement>;

    /// Returns this peer's publications of these files in chronological order, without those that it replaced by a newer one of
    /// the same name. They are published again to a catalogue that does not contain the files.
    async fn publications_of(&self, ids: &[FileId]) -> Result<Vec<Publication>, StorageError>;
}
