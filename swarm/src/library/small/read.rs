//! Reading small files: for other peers, after a crash, and to copy them to an output directory.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use rustix::fs::OFlags;

use super::files::{SmallContent, SmallCopy, SmallFile, SmallOutput, small_layout, write_to_output};
use crate::library::content::{ContentStore, DatabaseContent};
use crate::library::content_files;
use crate::library::error::Result;
use crate::library::inner::LibraryInner;
use crate::library::layout::{ContentPlace, LinkState, Record};
use crate::library::library::Library;
use crate::library::linked::{Fingerprint, open_regular};
use crate::library::task::blocking;
use enjambre_core::FileId;

/// The number of files that are hashed at once during recovery.
const RECOVER_FILES: usize = 64;
/// The largest number of files in one batch of copies.
const COPY_FILES: usize = 256;
/// The approximate number of bytes in one batch of copies.
const COPY_BYTES: u64 = 1024 * 1024;
const COPIERS: usize = 2;

enum Source {
    Missing,
    Database,
    File(PathBuf),
    Linked(PathBuf, Fingerprint),
}

impl Library {
    /// Returns the size of each file that is small and complete, and `None` for the others.
    pub fn small_sizes(&self, ids: &[FileId]) -> Vec<Option<u64>> {
        let state = self.inner.state.lock();
        ids.iter().map(|id| state.complete_small(id).map(|slot| slot.record.size)).collect()
    }

    /// Reads and hashes small files. Damaged files are dropped and changed ones withdrawn.
    pub async fn read_small(&self, ids: &[FileId]) -> Result<SmallContent> {
        self.inner.check_open()?;
        let (read, invalid) = self.inner.read_small(ids).await?;
        let mut found = false;
        for id in invalid {
            // Finds a linked file that moved, drops the pieces, or withdraws the file.
            match self.verify(&id).await {
                Ok(report) => found |= report.good > 0,
                Err(error) => tracing::debug!(%id, %error, "small file invalid"),
            }
        }
        if found { Ok(self.inner.read_small(ids).await?.0) } else { Ok(read) }
    }

    /// Copies small files to an output directory. Verifies every file. Returns the files that have to be
    /// copied one by one with [`Self::export_member`].
    pub async fn export_small(&self, files: Vec<SmallCopy>, output: &SmallOutput) -> Result<Vec<FileId>> {
        self.inner.check_open()?;
        let mut batches: Vec<Vec<SmallCopy>> = Vec::new();
        let mut bytes = 0;
        for file in files {
            match batches.last_mut() {
                Some(batch) if batch.len() < COPY_FILES && bytes + file.size <= COPY_BYTES => {
                    bytes += file.size;
                    batch.push(file);
                }
                _ => {
                    bytes = file.size;
                    batches.push(vec![file]);
                }
            }
        }
        let copies = batches.into_iter().map(|batch| self.inner.copy_small(batch, output.clone()));
        let mut copies = futures::stream::iter(copies).buffer_unordered(COPIERS);
        let mut left = Vec::new();
        while let Some(copied) = copies.next().await {
            left.extend(copied?);
        }
        Ok(left)
    }
}

impl LibraryInner {
    /// Reads small files. Returns their content, and the ids of stored files that are damaged or changed.
    async fn read_small(&self, ids: &[FileId]) -> Result<(SmallContent, Vec<FileId>)> {
        let sources = {
            let state = self.state.lock();
            let source = |id: &FileId| match state.complete_small(id) {
                Some(slot) => (*id, slot.record.size, self.source_of(id, &slot.record)),
                None => (*id, 0, Source::Missing),
            };
            ids.iter().map(source).collect()
        };
        self.read_sources(sources).await
    }

    fn source_of(&self, id: &FileId, record: &Record) -> Source {
        match (&record.place, &self.content) {
            (ContentPlace::Database, ContentStore::Database(_)) => Source::Database,
            (ContentPlace::Files, ContentStore::Files(dir)) => Source::File(content_files::path_of(dir, id)),
            (ContentPlace::Linked { state: LinkState::Whole(fingerprint), .. }, _) => {
                record.place.path().map_or(Source::Missing, |path| Source::Linked(path, *fingerprint))
            }
            _ => Source::Missing,
        }
    }

    async fn read_sources(&self, sources: Vec<(FileId, u64, Source)>) -> Result<(SmallContent, Vec<FileId>)> {
        let mut from_database = HashMap::new();
        if let ContentStore::Database(content) = &self.content {
            let wanted: Vec<(FileId, usize)> = sources
                .iter()
                .filter(|(_, size, source)| matches!(source, Source::Database) && *size > 0)
                .map(|(id, size, _)| (*id, *size as usize))
                .collect();
            if !wanted.is_empty() {
                let read = DatabaseContent(Arc::clone(content)).read_small(&wanted).await?;
                from_database.extend(wanted.iter().map(|(id, _)| *id).zip(read));
            }
        }
        let buffers = self.buffers.clone();
        blocking(move || {
            let total: u64 = sources.iter().map(|(_, size, _)| *size).sum();
            let mut content = buffers.take(total as usize);
            let mut sizes = Vec::with_capacity(sources.len());
            let (mut end, mut invalid) = (0, Vec::new());
            for (id, size, source) in sources {
                let target = &mut content[end..end + size as usize];
                let read = match source {
                    Source::Missing => {
                        sizes.push(None);
                        continue;
                    }
                    Source::Database if size == 0 => true,
                    Source::Database => match from_database.get(&id) {
                        Some(Some(read)) => {
                            target.copy_from_slice(read);
                            true
                        }
                        _ => false,
                    },
                    Source::File(path) => read_complete(&path, None, target),
                    Source::Linked(path, fingerprint) => read_complete(&path, Some(fingerprint), target),
                };
                if read && blake3::hash(target) == *id.as_bytes() {
                    end += size as usize;
                    sizes.push(Some(size));
                } else {
                    invalid.push(id);
                    sizes.push(None);
                }
            }
            content.truncate(end);
            Ok((SmallContent { sizes, content: content.freeze() }, invalid))
        })
        .await
    }

    /// Hashes the small files among files with intended pieces. Valid ones become stored, but unsynced.
    /// Returns the other files.
    pub(in crate::library) async fn recover_small(&self, ids: BTreeSet<FileId>) -> Result<Vec<FileId>> {
        let (mut sources, mut others) = (Vec::new(), Vec::new());
        {
            let state = self.state.lock();
            for id in ids {
                let record = state.slots.get(&id).map(|slot| &slot.record);
                let eligible = record.filter(|record| {
                    small_layout(record.size).is_some() && !record.complete && record.withdrawn.is_none()
                });
                match eligible.map(|record| (record.size, self.source_of(&id, record))) {
                    None | Some((_, Source::Missing)) => others.push(id),
                    Some((size, source)) => sources.push((id, size, source)),
                }
            }
        }
        while !sources.is_empty() {
            let some = sources.split_off(sources.len().saturating_sub(RECOVER_FILES));
            let ids: Vec<(FileId, u64)> = some.iter().map(|(id, size, _)| (*id, *size)).collect();
            let (read, invalid) = self.read_sources(some).await?;
            let mut state = self.state.lock();
            for ((id, size), found) in ids.into_iter().zip(read.sizes) {
                if found.is_some()
                    && let Some(slot) = state.slots.get_mut(&id)
                {
                    slot.have = u32::from(size > 0);
                    state.unsynced_small.insert(id, size);
                }
            }
            others.extend(invalid);
        }
        Ok(others)
    }

    /// Copies a batch. Returns the files that cannot be copied in a batch: something exists at a path, or
    /// the file cannot be read.
    async fn copy_small(&self, batch: Vec<SmallCopy>, output: SmallOutput) -> Result<Vec<FileId>> {
        let ids: Vec<FileId> = batch.iter().map(|file| file.id).collect();
        let (read, _) = self.read_small(&ids).await?;
        let mut content = read.content;
        let (mut left, mut files) = (Vec::new(), Vec::with_capacity(batch.len()));
        for (SmallCopy { id, paths, .. }, size) in batch.into_iter().zip(read.sizes) {
            match size {
                Some(size) => files.push(SmallFile { id, content: content.split_to(size as usize), paths }),
                None => left.push(id),
            }
        }
        let written = blocking(move || write_to_output(files, &output)).await?;
        left.extend(written.into_iter().filter(|file| file.blocked).map(|file| file.id));
        Ok(left)
    }
}

/// Fills `target` from a file, which must have the fingerprint if one is given. Returns whether that
/// succeeded. Blocks.
fn read_complete(path: &Path, fingerprint: Option<Fingerprint>, target: &mut [u8]) -> bool {
    let Ok((file, metadata)) = open_regular(path, OFlags::empty()) else { return false };
    fingerprint.is_none_or(|fingerprint| Fingerprint::of(&metadata) == fingerprint)
        && file.read_exact_at(target, 0).is_ok()
}
