//! Settings of the library.

/// The limits that start a checkpoint.
#[derive(Debug, Clone)]
pub struct LibrarySettings {
    /// The number of unsynced bytes that starts a checkpoint in the background.
    pub checkpoint_bytes: u64,
    /// The number of unsynced bytes at which writers wait for the checkpoint.
    pub max_unsynced_bytes: u64,
}

impl Default for LibrarySettings {
    fn default() -> Self {
        Self { checkpoint_bytes: 32 << 20, max_unsynced_bytes: 256 << 20 }
    }
}
