//! When the library syncs what was written.

/// How the library behaves.
#[derive(Debug, Clone)]
pub struct LibrarySettings {
    /// After how many bytes that were written but not synced a sync begins, in the background.
    pub checkpoint_bytes: u64,
    /// At how many such bytes writers wait for the sync.
    pub max_unsynced_bytes: u64,
}

impl Default for LibrarySettings {
    fn default() -> Self {
        Self { checkpoint_bytes: 32 << 20, max_unsynced_bytes: 256 << 20 }
    }
}
