//! The store of pinned files, as the tracker service needs it.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::catalogue::layout::PinId;
use enjambre_core::protocol::error::ErrorReply;

/// Fetches and stores pinned files.
///
/// The store keeps the pins in the catalogue, since it must not add one while it deletes the replica of the file. It reserves
/// space as content arrives. At its start it resumes all incomplete pins of
/// [`Catalogue::pins`](crate::catalogue::Catalogue::pins).
#[async_trait]
pub trait PinStore: Debug + Send + Sync + 'static {
    /// The maximum number of bytes that pins may reserve in total.
    fn quota(&self) -> u64;

    /// Adds the pin ([`Catalogue::pin`](crate::catalogue::Catalogue::pin)) and fetches the file in the background, unless the
    /// replica exists. Returns the number of bytes stored so far, without waiting for more, and whether the replica is complete
    /// and durable. May be called repeatedly. A new pin that it refuses is removed again.
    async fn pin(&self, id: &PinId) -> Result<(u64, bool), ErrorReply>;

    /// Removes the pin ([`Catalogue::unpin`](crate::catalogue::Catalogue::unpin)), stops fetching the file for it, and deletes
    /// the replica unless another pin needs it.
    async fn unpin(&self, id: &PinId) -> Result<(), ErrorReply>;
}
