//! The entries of the download queue and their order: pure.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{MAX_PENDING, QueueError, Result};
use crate::library::{DownloadRecord, DownloadState};
use enjambre_core::FileId;
use enjambre_core::model::id::is_id_or_prefix;

/// Maximum number of finished entries; beyond it the oldest is removed.
pub const MAX_FINISHED: usize = 100;

/// Pending entries in the order in which they start, then finished ones in the order in which they finished.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entries(Vec<(FileId, DownloadRecord)>);

impl Entries {
    pub(super) fn new(entries: Vec<(FileId, DownloadRecord)>) -> Self {
        let mut entries = Self(entries);
        entries.sort();
        entries
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(FileId, DownloadRecord)> {
        self.0.iter()
    }

    pub(super) fn get(&self, id: &FileId) -> Option<&DownloadRecord> {
        self.0.iter().find(|(known, _)| known == id).map(|(_, record)| record)
    }

    /// Returns the entry with this name, id or prefix of an id; of several with the name the last added one.
    pub(super) fn find(&self, query: &str) -> Result<FileId> {
        let ids = self.0.iter().map(|(id, _)| *id);
        let not_found = || QueueError::NotFound(query.chars().take(300).collect());
        if is_id_or_prefix(query) {
            let prefix = query.to_ascii_lowercase();
            let mut found = ids.filter(|id| id.to_string().starts_with(&prefix));
            let first = found.next().ok_or_else(not_found)?;
            return if found.next().is_none() { Ok(first) } else { Err(QueueError::Ambiguous(prefix)) };
        }
        let named = self.0.iter().filter(|(_, record)| record.name.as_str() == query);
        named.max_by_key(|(_, record)| record.added_ms).map(|(id, _)| *id).ok_or_else(not_found)
    }

    /// The entries to download, in the order in which they start.
    pub(super) fn queued(&self) -> impl Iterator<Item = &(FileId, DownloadRecord)> {
        self.0.iter().filter(|(_, record)| record.state == DownloadState::Queued)
    }

    pub(super) fn is_queued(&self, id: &FileId) -> bool {
        self.get(id).is_some_and(|record| record.state == DownloadState::Queued)
    }

    /// Adds an entry behind the others, or replaces a finished one.
    pub(super) fn add(&mut self, id: FileId, record: DownloadRecord) -> Result<()> {
        if self.pending() >= MAX_PENDING {
            return Err(QueueError::Full);
        }
        self.remove(&id);
        let order = self.next_order();
        self.0.push((id, DownloadRecord { order, ..record }));
        self.sort();
        Ok(())
    }

    /// Pauses or resumes a pending entry. A failed one is resumed behind the others.
    pub(super) fn set_state(&mut self, id: &FileId, state: DownloadState) -> Result<()> {
        let order = self.next_order();
        let pending = self.pending();
        let record = self.get_mut(id)?;
        match (&record.state, &state) {
            (DownloadState::Failed(_), DownloadState::Queued) if pending < MAX_PENDING => {
                record.order = order;
            }
            (DownloadState::Failed(_), DownloadState::Queued) => return Err(QueueError::Full),
            (DownloadState::Complete | DownloadState::Failed(_), _) => return Err(QueueError::Finished(*id)),
            _ => {}
        }
        record.state = state;
        self.sort();
        Ok(())
    }

    /// Records the progress of a download.
    pub(super) fn set_progress(&mut self, id: &FileId, done: u64, size: u64) {
        if let Ok(record) = self.get_mut(id) {
            (record.done, record.size) = (done, size);
        }
    }

    /// Ends a pending entry. Does nothing if it was removed.
    pub(super) fn finish(&mut self, id: &FileId, state: DownloadState) {
        let order = self.next_order();
        if let Ok(record) = self.get_mut(id) {
            (record.state, record.order) = (state, order);
        }
        self.sort();
        let surplus = (self.0.len() - self.pending()).saturating_sub(MAX_FINISHED);
        let first = self.pending();
        self.0.drain(first..first + surplus);
    }

    /// Moves a pending entry to this position among the pending ones, or behind them if it is greater.
    pub(super) fn move_to(&mut self, id: &FileId, position: usize) -> Result<()> {
        let from = self.0.iter().position(|(known, _)| known == id);
        let from = from.ok_or_else(|| QueueError::NotFound(id.to_string()))?;
        let pending = self.pending();
        if from >= pending {
            return Err(QueueError::Finished(*id));
        }
        let to = position.min(pending - 1);
        let moved = &mut self.0[from.min(to)..=from.max(to)];
        let orders: Vec<u64> = moved.iter().map(|(_, record)| record.order).collect();
        if from < to {
            moved.rotate_left(1);
        } else {
            moved.rotate_right(1);
        }
        for ((_, record), order) in moved.iter_mut().zip(orders) {
            record.order = order;
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &FileId) {
        self.0.retain(|(known, _)| known != id);
    }

    /// Returns the entries that were added, changed or removed since `before`.
    pub(super) fn changes_since(&self, before: &Self) -> BTreeSet<FileId> {
        let by_id =
            |entries: &Self| -> BTreeMap<FileId, DownloadRecord> { entries.0.iter().cloned().collect() };
        let (before, now) = (by_id(before), by_id(self));
        before.keys().chain(now.keys()).filter(|id| before.get(id) != now.get(id)).copied().collect()
    }

    fn get_mut(&mut self, id: &FileId) -> Result<&mut DownloadRecord> {
        let found = self.0.iter_mut().find(|(known, _)| known == id);
        found.map(|(_, record)| record).ok_or_else(|| QueueError::NotFound(id.to_string()))
    }

    fn pending(&self) -> usize {
        self.0.iter().take_while(|(_, record)| !record.state.is_finished()).count()
    }

    fn next_order(&self) -> u64 {
        self.0.iter().map(|(_, record)| record.order).max().map_or(0, |last| last.saturating_add(1))
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|(_, record)| (record.state.is_finished(), record.order));
    }
}
