//! The store of pinned files, as the tracker service needs it.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::catalogue::layout::{PinId, PinRecord};
use enjambre_core::protocol::error::ErrorReply;

/// Fetches and stores pinned files.
///
/// The service adds the pin to the catalogue ([`Catalogue::pin`](crate::catalogue::Catalogue::pin)) before it calls the store,
/// which reserves space as content arrives. At its start a store resumes all incomplete pins of [`Catalogue::pins`](crate::catalogue::Catalogue::pins). When a
/// file is complete and durable, the store calls [`Catalogue::set_complete`](crate::catalogue::Catalogue::set_complete).
#[async_trait]
pub trait PinStore: Debug + Send + Sync + 'static {
    /// The maximum number of bytes that pins may reserve in total.
    fn quota(&self) -> u64;

    /// Whether the file is being fetched for the pin, which is durable then.
    fn is_fetching(&self, id: &PinId) -> bool;

    /// Starts or continues to fetch the file in the background, unless the replica exists. Returns the number of bytes stored so
    /// far, without waiting for more, and whether the replica is complete. May be called repeatedly.
    async fn keep(&self, id: &PinId, pin: &PinRecord) -> Result<(u64, bool), ErrorReply>;

    /// Removes the pin ([`Catalogue::unpin`](crate::catalogue::Catalogue::unpin)), stops fetching the file for it, and deletes
    /// the replica unless another pin needs it.
    async fn unpin(&self, id: &PinId) -> Result<(), ErrorReply>;
}
