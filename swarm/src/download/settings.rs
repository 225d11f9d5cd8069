//! Settings of downloads.

use std::time::Duration;

/// Settings of a downloader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownloadSettings {
    /// How long a download waits for a provider with missing pieces before it fails.
    pub provider_timeout: Duration,
    /// How long a provider may be silent while a reply is due.
    pub silence_timeout: Duration,
    /// Maximum number of active providers per download.
    pub max_providers: usize,
    /// Maximum number of bytes that are requested and not yet written, over all downloads. It also bounds the loss after
    /// `kill -9`, since written pieces survive it.
    pub budget_bytes: usize,
}

impl Default for DownloadSettings {
    fn default() -> Self {
        Self {
            provider_timeout: Duration::from_secs(60),
            silence_timeout: Duration::from_secs(10),
            max_providers: 16,
            budget_bytes: 8 * 1024 * 1024,
        }
    }
}
