//! Storing small files.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::files::{SmallFile, SmallOutput, write_to_output};
use crate::library::checkpoint::{SOFT_BYTES, SOFT_SMALL_FILES};
use crate::library::content_files::StoredPiece;
use crate::library::error::Result;
use crate::library::inner::LibraryInner;
use crate::library::layout::{self, ContentPlace, DIRTY, LinkState, MEMBERS, Record};
use crate::library::library::Library;
use crate::library::linked::Fingerprint;
use crate::library::state::Slot;
use crate::library::task::{blocking, in_task};
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{Batch, Durability, FileId, FileKind};

impl Library {
    /// Stores verified small files as members of a collection, in the library or in an output directory. On
    /// return they survive a crash of the process. Returns the files that have to be downloaded one by one:
    /// something exists at a path, or the library contains an incomplete file. If the future is dropped, each
    /// file is either stored or not.
    ///
    /// # Errors
    /// [`LibraryError::Full`](crate::library::error::LibraryError::Full) if the disk is full; the call may be repeated.
    pub async fn add_small(
        &self,
        files: Vec<SmallFile>,
        member_of: FileId,
        output: Option<SmallOutput>,
    ) -> Result<Vec<FileId>> {
        self.inner.check_open()?;
        let added = in_task(Arc::clone(&self.inner).add_small(files, member_of, output)).await?;
        self.inner.keep_up().await?;
        Ok(added)
    }

    /// Adds complete files to a collection with as few commits as possible. A file with paths has to be
    /// linked at exactly these paths. Returns the added files.
    pub async fn adopt_members(
        &self,
        collection: FileId,
        files: Vec<(FileId, Vec<PathBuf>)>,
    ) -> Result<HashSet<FileId>> {
        self.inner.check_open()?;
        in_task(Arc::clone(&self.inner).adopt_members(collection, files)).await
    }
}

impl LibraryInner {
    async fn add_small(
        self: Arc<Self>,
        files: Vec<SmallFile>,
        member_of: FileId,
        output: Option<SmallOutput>,
    ) -> Result<Vec<FileId>> {
        let (mut skipped, mut added) = (Vec::new(), Vec::new());
        let Some(output) = output else {
            let place = self.content.place();
            added.extend(files.iter().map(|file| (file.id, file.content.len() as u64, vec![place.clone()])));
            let ids: Vec<FileId> = files.iter().map(|file| file.id).collect();
            {
                // With the locks the sweep has either finished with these files or sees the imports.
                let _guards = self.lock_all(ids.iter().copied()).await;
                let mut state = self.state.lock();
                ids.iter().for_each(|id| state.begin_import(*id));
            }
            let result = async {
                let piece = |SmallFile { id, content, .. }| StoredPiece { id, number: 0, offset: 0, content };
                self.content.write(files.into_iter().map(piece).collect()).await?;
                self.record_small(added, member_of).await
            };
            let result = result.await;
            let mut state = self.state.lock();
            ids.iter().for_each(|id| state.end_import(id));
            return result;
        };
        let written = blocking(move || write_to_output(files, &output)).await?;
        for file in written {
            skipped.extend(file.blocked.then_some(file.id));
            if !file.places.is_empty() {
                added.push((file.id, file.size, file.places));
            }
        }
        skipped.extend(self.record_small(added, member_of).await?);
        Ok(skipped)
    }

    /// Records written files with their places in the index. Returns the files that the index already contains in another
    /// state.
    async fn record_small(
        &self,
        files: Vec<(FileId, u64, Vec<ContentPlace>)>,
        member_of: FileId,
    ) -> Result<Vec<FileId>> {
        let _guards = self.lock_all(files.iter().map(|(id, ..)| *id)).await;
        let (mut new, mut members, mut other) = (Vec::new(), Vec::new(), Vec::new());
        {
            let state = self.state.lock();
            for (id, size, places) in files {
                match state.slots.get(&id) {
                    Some(slot) if slot.is_complete() => members.push(id),
                    Some(_) => other.push(id),
                    None if state.tombstones.contains_key(&id) => other.push(id),
                    None => {
                        let mut places = places.into_iter();
                        let Some(place) = places.next() else { continue };
                        let mut record = Record::new(size, FileKind::File, place, SystemClock.now());
                        places.for_each(|copy| record.add_copy(copy));
                        members.push(id);
                        new.push((id, record));
                    }
                }
            }
        }
        let mut batch = Batch::new();
        for (id, record) in &new {
            batch.put(layout::FILES, layout::id_key(id), record.encode());
            if record.size > 0 {
                batch.put(DIRTY, layout::page_key(id, 0), vec![1]);
            }
        }
        for id in &members {
            batch.put(MEMBERS, layout::member_key(id, &member_of), vec![1]);
        }
        self.commit_in_parts(batch, Durability::Buffered).await?;
        let (bytes, many) = {
            let mut state = self.state.lock();
            state.members.extend(members.into_iter().map(|id| (id, member_of)));
            for (id, record) in new {
                let (size, pieces) = (record.size, record.layout()?.count());
                state.insert(id, Slot::new(record, true, pieces));
                state.unsynced_small.insert(id, size);
            }
            (state.unsynced_small.bytes, state.unsynced_small.len() >= SOFT_SMALL_FILES)
        };
        self.flush_soon.notify_one();
        if bytes >= SOFT_BYTES || many {
            self.flush_now.notify_one();
        }
        Ok(other)
    }

    async fn adopt_members(
        self: Arc<Self>,
        member_of: FileId,
        files: Vec<(FileId, Vec<PathBuf>)>,
    ) -> Result<HashSet<FileId>> {
        // Linked files are checked on the disk, files in the library's own store are not.
        let candidates: Vec<(FileId, Option<(PathBuf, Fingerprint)>)> = {
            let state = self.state.lock();
            let candidate = |(id, paths): (FileId, Vec<PathBuf>)| {
                let place = &state.slots.get(&id).filter(|slot| slot.is_complete())?.record.place;
                let path = place.path();
                if paths.iter().any(|wanted| path.as_ref() != Some(wanted)) {
                    return None;
                }
                match (place, path) {
                    (ContentPlace::Linked { state: LinkState::Whole(fingerprint), .. }, Some(path)) => {
                        Some((id, Some((path, *fingerprint))))
                    }
                    (ContentPlace::Linked { .. }, _) => None,
                    _ => Some((id, None)),
                }
            };
            files.into_iter().filter_map(candidate).collect()
        };
        if candidates.is_empty() {
            return Ok(HashSet::new());
        }
        let unchanged: Vec<FileId> = blocking(move || {
            let is_unchanged = |linked: &Option<(PathBuf, Fingerprint)>| match linked {
                None => true,
                Some((path, fingerprint)) => {
                    std::fs::metadata(path).is_ok_and(|metadata| Fingerprint::of(&metadata) == *fingerprint)
                }
            };
            let unchanged = candidates.into_iter().filter(|(_, linked)| is_unchanged(linked));
            Ok(unchanged.map(|(id, _)| id).collect())
        })
        .await?;
        let _guards = self.lock_all(unchanged.iter().copied()).await;
        let mut batch = Batch::new();
        let mut adopted = HashSet::new();
        {
            let state = self.state.lock();
            for id in unchanged.into_iter().filter(|id| state.slots.get(id).is_some_and(Slot::is_complete)) {
                if !state.members.contains(&(id, member_of)) {
                    batch.put(MEMBERS, layout::member_key(&id, &member_of), vec![1]);
                }
                adopted.insert(id);
            }
        }
        self.commit_in_parts(batch, Durability::Buffered).await?;
        self.state.lock().members.extend(adopted.iter().map(|id| (*id, member_of)));
        Ok(adopted)
    }
}
