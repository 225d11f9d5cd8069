//! The request to download one file.

use std::sync::Arc;

use super::provider::ProviderSource;
use crate::library::output::Destination;
use enjambre_core::FileId;
use enjambre_core::model::name::Name;
use enjambre_core::model::record::FileKind;

/// A file to download and its destination.
#[derive(Clone)]
pub struct DownloadRequest {
    /// The id of the file.
    pub id: FileId,
    /// The name in the library; `None` for a member of a collection.
    pub name: Option<Name>,
    /// The kind of the file.
    pub kind: FileKind,
    /// The collection that the file belongs to.
    pub member_of: Option<FileId>,
    /// The size that the publisher claims, shown as progress until a provider has proven the size.
    pub claimed_size: Option<u64>,
    /// The size, if it is verified (as the entry of a collection) or if no other size is accepted. Nothing is fetched
    /// from providers that claim another size.
    pub proven_size: Option<u64>,
    /// Where the content is written.
    pub destination: Destination,
    /// The id under which providers announce the file: its own id, or that of its collection.
    pub announced_as: FileId,
    /// Looks up the providers.
    pub providers: Arc<dyn ProviderSource>,
}
