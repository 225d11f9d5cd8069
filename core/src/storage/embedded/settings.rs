//! The settings of the adapter: queues, groups and timeouts.

use std::time::Duration;

/// The settings of an [`super::Embedded`]. The defaults suit peers and trackers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EmbeddedSettings {
    /// The prefix of the names of the threads, for example `sqlite`.
    pub name: String,
    /// The number of reader threads, at least 1.
    pub readers: usize,
    /// The maximum number of queued commits and syncs. Further callers wait.
    pub queued_commits: usize,
    /// The maximum size of queued batches in bytes. A larger batch is queued alone.
    pub queued_bytes: usize,
    /// The maximum number of keys of queued reads.
    pub queued_reads: usize,
    /// The maximum number of batches in a group.
    pub group_batches: usize,
    /// The size in bytes at which a group is complete.
    pub group_bytes: usize,
    /// The delay before the first attempt to reopen a failed engine. It doubles after each failure.
    pub reopen_first: Duration,
    /// The maximum delay between attempts to reopen. The delay is reset after the engine was open for as long.
    pub reopen_longest: Duration,
    /// The timeout of a close.
    pub close_timeout: Duration,
}

impl EmbeddedSettings {
    /// The defaults with a name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
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
