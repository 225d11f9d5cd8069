//! A small member of a collection.

use enjambre_core::{FileId, MemberPath};

/// A small member to download.
#[derive(Debug, Clone)]
pub(in crate::download) struct SmallMember {
    pub(in crate::download) id: FileId,
    pub(in crate::download) size: u64,
    /// The paths, and whether the file is executable there.
    pub(in crate::download) paths: Vec<(MemberPath, bool)>,
    /// Indexes of providers that do not have the file.
    pub(super) missing_at: Vec<usize>,
}

impl SmallMember {
    pub(in crate::download) const fn new(id: FileId, size: u64, paths: Vec<(MemberPath, bool)>) -> Self {
        Self { id, size, paths, missing_at: Vec::new() }
    }

    /// Returns the bytes, counted once for each path.
    pub(super) fn bytes(&self) -> u64 {
        self.size * self.paths.len() as u64
    }
}
