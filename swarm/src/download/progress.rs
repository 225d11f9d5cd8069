//! Progress of a download.

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
