//! The request to download one file, and the progress of the download.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::provider::ProviderSource;
use crate::library::entry::NewFile;
use crate::library::output::Destination;
use enjambre_core::FileId;

/// A file to download and its destination.
#[derive(Clone)]
pub struct DownloadRequest {
    /// The id of the file.
    pub id: FileId,
    /// The name, kind and collection of the file in the library.
    pub file: NewFile,
    /// The size that the publisher claims, shown as progress until a provider has proven the size.
    pub claimed_size: u64,
    /// The accepted sizes. A single one is verified, as in the entry of a collection: nothing is fetched from providers that
    /// claim another size. Otherwise the download fails as soon as a provider proves another size, with the last piece.
    pub accepted_sizes: RangeInclusive<u64>,
    /// Where the content is written.
    pub destination: Destination,
    /// The id under which providers announce the file: its own id, or that of its collection.
    pub announced_as: FileId,
    /// Looks up the providers.
    pub providers: Arc<dyn ProviderSource>,
}

/// The activity of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// No provider is active: trackers are queried, or providers are retried.
    #[default]
    Searching,
    /// Pieces are being fetched.
    Fetching,
    /// The disk is full. The download continues when there is free space.
    DiskFull,
}

/// The progress of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Verified and written bytes.
    pub done: u64,
    /// Total bytes; the claimed size until the size is proven.
    pub total: u64,
    /// Number of active providers.
    pub providers: u32,
    /// The current activity.
    pub phase: Phase,
}
