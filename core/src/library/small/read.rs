//! Reading small files: for other peers, after a crash, and to copy them to a folder.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;

use super::{SmallContent, SmallFile, SmallOutput, ToCopy, small, write_out};
use crate::library::content::{ContentStore, DatabaseContent};
use crate::library::content_files;
use crate::library::error::LibraryError;
use crate::library::layout::{self, LinkState, Place, Record};
use crate::library::linked::{Fingerprint, open_regular};
use crate::library::shared::Shared;
use crate::model::id::FileId;

/// How many files are hashed at once when a library is opened after a crash.
const RECOVER_AT_ONCE: usize = 64;
/// How many files, and about how many bytes, are copied at once.
const COPY_FILES: usize = 256;
const COPY_BYTES: u64 = 1024 * 1024;
/// How many batches are copied at the same time.
const COPIERS: usize = 2;

/// Where a small file can be read.
enum Source {
    Nowhere,
    Database,
    File(PathBuf),
    Linked(PathBuf, Fingerprint),
}

impl Shared {
    /// Reads small files that are here. Returns as well those that should be and could not be read so.
    pub(super) async fn read_small(
        &self,
        ids: &[FileId],
    ) -> Result<(SmallContent, Vec<FileId>), LibraryError> {
        self.read_sources(self.sources_of(ids)).await
    }

    /// Where small files are that are here in whole.
    fn sources_of(&self, ids: &[FileId]) -> Vec<(FileId, u64, Source)> {
        let state = self.state.lock();
        let source = |id: &FileId| match state.whole_small(id) {
            Some(slot) => (*id, slot.record.size, self.source_of(id, &slot.record)),
            None => (*id, 0, Source::Nowhere),
        };
        ids.iter().map(source).collect()
    }

    fn source_of(&self, id: &FileId, record: &Record) -> Source {
        match (&record.place, &self.content) {
            (Place::Database, ContentStore::Database(_)) => Source::Database,
            (Place::Files, ContentStore::Files(dir)) => Source::File(content_files::path_of(dir, id)),
            (Place::Linked { state: LinkState::Whole(mark), .. }, _) => {
                record.place.path().map_or(Source::Nowhere, |path| Source::Linked(path, *mark))
            }
            _ => Source::Nowhere,
        }
    }

    /// Reads small files from where they are said to be, and hashes them.
    async fn read_sources(
        &self,
        sources: Vec<(FileId, u64, Source)>,
    ) -> Result<(SmallContent, Vec<FileId>), LibraryError> {
        let mut stored = HashMap::new();
        if let ContentStore::Database(content) = &self.content {
            let wanted: Vec<(FileId, usize)> = sources
                .iter()
                .filter(|(_, size, source)| matches!(source, Source::Database) && *size > 0)
                .map(|(id, size, _)| (*id, *size as usize))
                .collect();
            if !wanted.is_empty() {
                let read = DatabaseContent(Arc::clone(content)).read_small(&wanted).await?;
                stored.extend(wanted.iter().map(|(id, _)| *id).zip(read));
            }
        }
        let buffers = self.buffers.clone();
        layout::blocking(move || {
            let total: u64 = sources.iter().map(|(_, size, _)| *size).sum();
            let mut content = buffers.take(total as usize);
            let mut sizes = Vec::with_capacity(sources.len());
            let (mut end, mut odd) = (0, Vec::new());
            for (id, size, source) in sources {
                let target = &mut content[end..end + size as usize];
                let read = match source {
                    Source::Nowhere => {
                        sizes.push(None);
                        continue;
                    }
                    Source::Database if size == 0 => true,
                    Source::Database => match stored.get(&id) {
                        Some(Some(stored)) => {
                            target.copy_from_slice(stored);
                            true
                        }
                        _ => false,
                    },
                    Source::File(path) => read_whole(&path, None, target),
                    Source::Linked(path, mark) => read_whole(&path, Some(mark), target),
                };
                if read && blake3::hash(target) == *id.as_bytes() {
                    end += size as usize;
                    sizes.push(Some(size));
                } else {
                    odd.push(id);
                    sizes.push(None);
                }
            }
            content.truncate(end);
            Ok((SmallContent { sizes, content: content.freeze() }, odd))
        })
        .await
    }

    /// Hashes the small files among those that may have been written but are not known to be synced. What is right
    /// is here, and fresh. Returns the others.
    pub(in crate::library) async fn recover_small(
        &self,
        ids: BTreeSet<FileId>,
    ) -> Result<Vec<FileId>, LibraryError> {
        let (mut sources, mut others) = (Vec::new(), Vec::new());
        {
            let state = self.state.lock();
            for id in ids {
                let record = state.slots.get(&id).map(|slot| &slot.record);
                let eligible = record
                    .filter(|record| small(record.size).is_some() && !record.complete && !record.withdrawn);
                match eligible.map(|record| (record.size, self.source_of(&id, record))) {
                    None | Some((_, Source::Nowhere)) => others.push(id),
                    Some((size, source)) => sources.push((id, size, source)),
                }
            }
        }
        while !sources.is_empty() {
            let some = sources.split_off(sources.len().saturating_sub(RECOVER_AT_ONCE));
            let ids: Vec<(FileId, u64)> = some.iter().map(|(id, size, _)| (*id, *size)).collect();
            let (read, odd) = self.read_sources(some).await?;
            let mut state = self.state.lock();
            for ((id, size), found) in ids.into_iter().zip(read.sizes) {
                if found.is_some()
                    && let Some(slot) = state.slots.get_mut(&id)
                {
                    slot.have = u32::from(size > 0);
                    state.fresh.insert(id, size);
                }
            }
            others.extend(odd);
        }
        Ok(others)
    }

    /// Copies small files that are here beneath a folder. Returns those that are to be copied in the usual way, since
    /// something is in the way at a path, or they cannot be read.
    pub(in crate::library) async fn export_small(
        self: &Arc<Self>,
        files: Vec<ToCopy>,
        output: &SmallOutput,
    ) -> Result<Vec<FileId>, LibraryError> {
        let mut batches: Vec<Vec<ToCopy>> = Vec::new();
        let mut bytes = 0;
        for file in files {
            match batches.last_mut() {
                Some(batch) if batch.len() < COPY_FILES && bytes + file.1 <= COPY_BYTES => {
                    bytes += file.1;
                    batch.push(file);
                }
                _ => {
                    bytes = file.1;
                    batches.push(vec![file]);
                }
            }
        }
        let copies = batches.into_iter().map(|batch| self.copy_small(batch, output.clone()));
        let mut copies = futures::stream::iter(copies).buffer_unordered(COPIERS);
        let mut left = Vec::new();
        while let Some(copied) = copies.next().await {
            left.extend(copied?);
        }
        Ok(left)
    }

    async fn copy_small(&self, batch: Vec<ToCopy>, output: SmallOutput) -> Result<Vec<FileId>, LibraryError> {
        let ids: Vec<FileId> = batch.iter().map(|(id, ..)| *id).collect();
        let (read, _) = self.read_sources(self.sources_of(&ids)).await?;
        let mut content = read.content;
        let (mut left, mut files) = (Vec::new(), Vec::with_capacity(batch.len()));
        for ((id, _, paths), size) in batch.into_iter().zip(read.sizes) {
            match size {
                Some(size) => files.push(SmallFile { id, content: content.split_to(size as usize), paths }),
                None => left.push(id),
            }
        }
        let written = layout::blocking(move || write_out(files, &output)).await?;
        left.extend(written.into_iter().filter(|(.., in_the_way)| *in_the_way).map(|(id, ..)| id));
        Ok(left)
    }
}

/// Reads a file that has exactly this length and, if it is the user's, looks as it did. Blocks.
fn read_whole(path: &Path, mark: Option<Fingerprint>, target: &mut [u8]) -> bool {
    let Ok((file, metadata)) = open_regular(path) else { return false };
    mark.is_none_or(|mark| Fingerprint::of(&metadata) == mark) && file.read_exact_at(target, 0).is_ok()
}
