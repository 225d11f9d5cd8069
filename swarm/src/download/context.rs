//! Resources that all transfers of a peer share.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::provider::ProviderError;
use super::settings::DownloadSettings;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::PeerId;
use enjambre_core::model::layout::PieceLayout;
use enjambre_core::transport::dialer::Dialer;

/// The limit of a whole request, as a multiple of the silence timeout.
const REQUEST_TIMEOUTS: u32 = 6;

/// Resources that all transfers of a peer share.
pub(super) struct DownloadContext {
    pub(super) library: Arc<Library>,
    pub(super) dialer: Arc<Dialer>,
    pub(super) settings: DownloadSettings,
    pub(super) limit: Arc<BandwidthLimit>,
    /// In units of 1 KiB.
    pub(super) budget: Arc<Semaphore>,
    /// The id of this peer, which is not a provider for itself.
    pub(super) me: Option<PeerId>,
    /// The time of the last log message about a storage wait.
    pub(super) wait_logged: Mutex<Option<Instant>>,
}

impl DownloadContext {
    /// Limits the total time of a request. Other traffic on the connection keeps the silence timeout from expiring, so a
    /// provider could otherwise leave a single request open forever.
    pub(super) async fn limit_time<T>(
        &self,
        reply: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ProviderError> {
        let replied = timeout(self.settings.silence_timeout * REQUEST_TIMEOUTS, reply).await;
        replied
            .unwrap_or_else(|_| Err(ProviderError::Refused("no reply within the request timeout".to_owned())))
    }

    /// The share of the budget for one piece of this layout.
    pub(super) fn piece_units(layout: PieceLayout) -> u32 {
        layout.piece_size() / 1024
    }
}
