//! Metrics of downloads.

use enjambre_core::metrics::{Counter, Histogram};

/// The metrics of a downloader. A small file that is fetched with others counts as one piece.
#[derive(Debug, Default)]
pub struct DownloadMetrics {
    /// Verified bytes of content.
    pub received: Counter,
    /// Pieces with the expected content.
    pub verified: Counter,
    /// Pieces with other content.
    pub invalid: Counter,
    /// Requests for a piece that failed.
    pub failed: Counter,
    /// Requests for a piece that was received from another provider first.
    pub cancelled: Counter,
    /// The durations of requests for pieces that were received, from the request to the last byte.
    pub pieces: Histogram,
    /// The durations of complete downloads of files and directories.
    pub gets: Histogram,
    /// Attempts to download a file or directory that failed, including those that the queue repeats.
    pub failed_gets: Counter,
}

impl DownloadMetrics {
    /// Counts small files that were fetched with one request, and the bytes of the valid ones.
    pub(super) fn add_files(&self, valid: usize, invalid: usize, bytes: u64) {
        self.verified.add(valid as u64);
        self.invalid.add(invalid as u64);
        self.received.add(bytes);
    }
}
