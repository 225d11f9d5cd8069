//! What the tracker service needs of a store that keeps copies of files.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::catalogue::pins::Pin;
use crate::model::id::FileId;
use crate::model::record::FileRecord;
use crate::protocol::error::ErrorReply;

/// Fetches and holds files that are pinned.
///
/// The room is reserved in the catalogue ([`crate::catalogue::Catalogue::pin`]) before the store hears of a file.
/// At its start a store goes on with all pins of [`crate::catalogue::Catalogue::pins`] that are not held. Once it
/// has a file whole and durably, it calls [`crate::catalogue::Catalogue::set_held`].
#[async_trait]
pub trait PinStore: Debug + Send + Sync + 'static {
    /// How many bytes may be promised to pins altogether.
    fn quota(&self) -> u64;

    /// Begins to fetch the file, or goes on, in the background; returns at once how many bytes of it are here. May
    /// be called again at any time.
    async fn keep(&self, file: &FileRecord, pin: Pin) -> Result<u64, ErrorReply>;

    /// Stops fetching the file, and deletes the copy unless it is needed for another pin.
    async fn discard(&self, id: &FileId) -> Result<(), ErrorReply>;
}
