//! Events of a transfer.

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::download::provider::{ConnectedProvider, ProviderError};
use crate::download::schedule::ProviderKey;
use crate::library::error::LibraryError;
use enjambre_core::{Bitmap, Manifest, PieceIndex, PieceLayout, Provider};

/// The content of a piece, with its share of the budget.
pub(super) type PieceContent = (Bytes, OwnedSemaphorePermit);

/// The end of an operation that a transfer started.
pub(super) enum Event {
    Providers(Result<Vec<Provider>, String>),
    Connected(ProviderKey, Result<Box<Connected>, ProviderError>),
    /// A `have` request. The time identifies the connection, since the provider may have been reconnected.
    Have(ProviderKey, Instant, Result<(PieceLayout, Bitmap), ProviderError>),
    Piece(ProviderKey, PieceIndex, Result<PieceContent, ProviderError>),
    /// The write of a batch, with the pieces whose content was wrong.
    Written(Vec<Received>, Result<Vec<PieceIndex>, LibraryError>),
    /// A wait for a piece's share of the budget; `None` if the budget is closed.
    Budget(Option<OwnedSemaphorePermit>),
    Ignored,
}

pub(super) struct Connected {
    pub(super) provider: ConnectedProvider,
    /// The verified manifest and the last piece, if requested.
    pub(super) proof: Option<(Manifest, Option<PieceContent>)>,
}

/// A piece that was received and is not yet written.
pub(super) struct Received {
    pub(super) from: ProviderKey,
    pub(super) piece: PieceIndex,
    pub(super) content: Bytes,
    /// Returns the share of the budget when dropped.
    pub(super) _permit: OwnedSemaphorePermit,
}
