//! How far a download is.

/// What a download is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// No provider is at work: the trackers are asked, or peers are tried again.
    #[default]
    Searching,
    /// Pieces come in.
    Fetching,
    /// The disk is full; it goes on by itself when there is room.
    DiskFull,
}

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes that are verified and written.
    pub done: u64,
    /// Bytes of the whole; what was claimed until it is proven.
    pub total: u64,
    /// Providers at work.
    pub sources: u32,
    /// What it is doing.
    pub phase: Phase,
}
