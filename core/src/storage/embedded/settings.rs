//! How much the adapter queues, how it groups, and how long it waits.

use std::time::Duration;

/// The settings of an [`super::Embedded`]. The defaults suit a database of a peer or a tracker.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// How the threads are called, for example `sqlite`.
    pub name: String,
    /// How many reader threads there are; at least 1.
    pub readers: usize,
    /// How many commits and syncs wait or run at most before callers wait for a place.
    pub queued_commits: usize,
    /// How many bytes of batches wait or run at most; a larger batch goes alone.
    pub queued_bytes: usize,
    /// How many keys of reads wait or run at most.
    pub queued_reads: usize,
    /// How many batches are committed as one at most.
    pub group_batches: usize,
    /// From how many bytes on a group takes no more batches.
    pub group_bytes: usize,
    /// The pause before the first attempt to reopen a failed engine. It doubles with each failure.
    pub reopen_first: Duration,
    /// The longest pause between attempts to reopen. An engine that was open for as long begins with the first pause again.
    pub reopen_longest: Duration,
    /// How long a close may take before it gives up on the engine.
    pub close_timeout: Duration,
}

impl Default for EmbeddedSettings {
    fn default() -> Self {
        Self {
            name: "storage".to_owned(),
            readers: 2,
            queued_commits: 1024,
            queued_bytes: 16 * 1024 * 1024,
            queued_reads: 4096,
            group_batches: 256,
            group_bytes: 16 * 1024 * 1024,
            reopen_first: Duration::from_millis(50),
            reopen_longest: Duration::from_secs(5),
            close_timeout: Duration::from_secs(4),
        }
    }
}
