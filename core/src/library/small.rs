//! Whole small files, many at a time: read in one go, and added with few commits.
//!
//! A small file has one piece or none. For each the usual way would cost an open file, some commits and tasks of
//! its own, which for thousands of them is most of the work. Here a batch is written by one task and noted by one
//! commit. Until the next checkpoint such a file is *fresh*: it is there, but not known to be synced, and its record
//! is not complete. Who opens it meanwhile gets it as any other file that waits for its sync.

pub(super) mod fresh;
mod read;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::content::{ContentStore, DatabaseContent};
use super::content_files::ContentFile;
use super::create::now_ms;
use super::error::LibraryError;
use super::layout::{self, DIRTY, LinkState, MEMBERS, Place, Record};
use super::library::Library;
use super::linked::Fingerprint;
use super::output::OutputDir;
use super::shared::{Shared, Slot, State};
use super::whole::Folders;
use crate::model::collection::MemberPath;
use crate::model::id::FileId;
use crate::model::layout::{MIN_PIECE_SIZE, PieceLayout};
use crate::model::record::FileKind;
use crate::storage::value::{Batch, Durability};

/// The largest file that counts as small, in bytes: one piece.
pub const MAX_SMALL: u64 = MIN_PIECE_SIZE as u64;
/// A small file that the caller has verified against its id.
#[derive(Debug, Clone)]
pub struct SmallFile {
    /// The hash of the content.
    pub id: FileId,
    /// All of it.
    pub content: Bytes,
    /// Where it goes beneath the output directory, and whether its owner may execute it there; one path at least
    /// where there is such a directory.
    pub paths: Vec<(MemberPath, bool)>,
}

/// The folder that small files are written to.
#[derive(Debug, Clone)]
pub struct SmallOutput {
    /// The folder.
    pub dir: Arc<OutputDir>,
    /// Replace what is there.
    pub force: bool,
}

/// A small file that is here, its size, and the paths that it is to be copied to, with whether its owner may execute it
/// there.
pub type ToCopy = (FileId, u64, Vec<(MemberPath, bool)>);

/// What could be read of a batch of small files.
#[derive(Debug, Clone, Default)]
pub struct SmallContent {
    /// The size of each file, in the order of the question; none where it is not here.
    pub sizes: Vec<Option<u64>>,
    /// The content of those that are here, one after the other.
    pub content: Bytes,
}

/// The layout of a small file.
fn small(size: u64) -> Option<PieceLayout> {
    PieceLayout::new(size).ok().filter(|layout| layout.count() <= 1)
}

impl State {
    /// The file, if it is small and all of it is here under its final name.
    fn whole_small(&self, id: &FileId) -> Option<&Slot> {
        let slot = self.slots.get(id).filter(|slot| is_whole(slot))?;
        small(slot.record.size).map(|_| slot)
    }
}

/// Whether every piece is here and, of a file of the user, it has its name.
fn is_whole(slot: &Slot) -> bool {
    let record = &slot.record;
    let pieces = record.layout().map_or(u32::MAX, |layout| layout.count());
    let filled = matches!(record.place, Place::Linked { state: LinkState::Part { .. }, .. });
    slot.have == pieces && !record.withdrawn && !filled
}

impl Library {
    /// The sizes of those of the files that are small and here; none for the others.
    pub fn small_sizes(&self, ids: &[FileId]) -> Vec<Option<u64>> {
        let state = self.shared.state.lock();
        ids.iter().map(|id| state.whole_small(id).map(|slot| slot.record.size)).collect()
    }

    /// Reads small files in one go. Each is hashed; one that turns out to be damaged or changed is no longer claimed
    /// afterwards.
    pub async fn read_small(&self, ids: &[FileId]) -> Result<SmallContent, LibraryError> {
        self.shared.check_open()?;
        let (read, odd) = self.shared.read_small(ids).await?;
        for id in odd {
            // The usual way finds out what is wrong with it and draws the consequences.
            if let Err(error) = self.verify(&id).await {
                tracing::debug!(%id, %error, "a small file cannot be read");
            }
        }
        Ok(read)
    }

    /// Keeps verified small files as members of a collection, in the library or beneath a folder. On return they
    /// survive a crash of the process. Returns those that must be got in the usual way: something is in the way at
    /// a path, or part of the file is here. Dropping the future leaves each file either kept or not kept.
    ///
    /// # Errors
    /// [`LibraryError::Full`] where there is no room; the call may be repeated.
    pub async fn add_small(
        &self,
        files: Vec<SmallFile>,
        member_of: FileId,
        output: Option<SmallOutput>,
    ) -> Result<Vec<FileId>, LibraryError> {
        self.shared.check_open()?;
        let shared = Arc::clone(&self.shared);
        let added =
            layout::finished(tokio::spawn(async move { shared.add_small(files, member_of, output).await }))
                .await?;
        self.shared.keep_up().await?;
        Ok(added)
    }

    /// Copies small files that are here beneath a folder, verified on the way. Returns those that are to be copied one by
    /// one, with [`Self::export_member`].
    pub async fn export_small(
        &self,
        files: Vec<ToCopy>,
        output: &SmallOutput,
    ) -> Result<Vec<FileId>, LibraryError> {
        self.shared.check_open()?;
        self.shared.export_small(files, output).await
    }

    /// Which of the files are here in whole, at exactly these paths if there are any, with as few commits as they
    /// fit in made members of the collection.
    pub async fn settle(
        &self,
        member_of: FileId,
        files: Vec<(FileId, Vec<PathBuf>)>,
    ) -> Result<HashSet<FileId>, LibraryError> {
        self.shared.check_open()?;
        let shared = Arc::clone(&self.shared);
        layout::finished(tokio::spawn(async move { shared.settle(member_of, files).await })).await
    }
}

impl Shared {
    async fn add_small(
        self: &Arc<Self>,
        files: Vec<SmallFile>,
        member_of: FileId,
        output: Option<SmallOutput>,
    ) -> Result<Vec<FileId>, LibraryError> {
        let (mut blocked, mut added) = (Vec::new(), Vec::new());
        match output {
            Some(output) => {
                let written = layout::blocking(move || write_out(files, &output)).await?;
                for (id, size, place, in_the_way) in written {
                    added.extend(place.map(|place| (id, size, place)));
                    blocked.extend(in_the_way.then_some(id));
                }
                blocked.extend(self.note_small(added, member_of).await?);
            }
            None => {
                let place = self.own_place();
                added.extend(files.iter().map(|file| (file.id, file.content.len() as u64, place.clone())));
                let ids: Vec<FileId> = files.iter().map(|file| file.id).collect();
                {
                    // Whatever sweeps content without a record is done with these, or leaves them alone.
                    let _guards = self.lock_all(ids.iter().copied()).await;
                    let mut state = self.state.lock();
                    ids.iter().for_each(|id| state.begin_import(*id));
                }
                let result = async {
                    self.write_in(files).await?;
                    self.note_small(added, member_of).await
                };
                let result = result.await;
                let mut state = self.state.lock();
                ids.iter().for_each(|id| state.end_import(id));
                blocked = result?;
            }
        }
        Ok(blocked)
    }

    /// Writes files into the library's own store.
    async fn write_in(&self, files: Vec<SmallFile>) -> Result<(), LibraryError> {
        match &self.content {
            ContentStore::Database(content) => {
                let files: Vec<_> = files.into_iter().map(|file| (file.id, file.content)).collect();
                DatabaseContent(Arc::clone(content)).write_small(&files).await
            }
            ContentStore::Files(dir) => {
                let dir = dir.clone();
                layout::blocking(move || {
                    for file in files {
                        let layout = record_layout(file.content.len() as u64)?;
                        let stored = ContentFile::open(&dir, &file.id)?;
                        if let Some(piece) = layout.last() {
                            stored.write(layout, piece, &file.content)?;
                        }
                    }
                    Ok(())
                })
                .await
            }
        }
    }

    /// Notes files in the index whose content was written, with one commit. Returns those that it knows otherwise.
    async fn note_small(
        self: &Arc<Self>,
        files: Vec<(FileId, u64, Place)>,
        member_of: FileId,
    ) -> Result<Vec<FileId>, LibraryError> {
        let _guards = self.lock_all(files.iter().map(|(id, ..)| *id)).await;
        let (mut new, mut members, mut other) = (Vec::new(), Vec::new(), Vec::new());
        {
            let state = self.state.lock();
            for (id, size, place) in files {
                match state.slots.get(&id) {
                    Some(slot) if is_whole(slot) => members.push(id),
                    Some(_) => other.push(id),
                    None if state.tombs.contains_key(&id) => other.push(id),
                    None => {
                        members.push(id);
                        new.push((id, small_record(size, place)));
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
                state.fresh.insert(id, size);
            }
            (state.fresh.bytes(), state.fresh.are_many())
        };
        self.flush_some_time.notify_one();
        if bytes >= self.settings.checkpoint_bytes || many {
            self.flush_now.notify_one();
        }
        Ok(other)
    }

    async fn settle(
        self: &Arc<Self>,
        member_of: FileId,
        files: Vec<(FileId, Vec<PathBuf>)>,
    ) -> Result<HashSet<FileId>, LibraryError> {
        // What is linked is looked at; the library's own store is believed.
        let candidates: Vec<(FileId, Option<(PathBuf, Fingerprint)>)> = {
            let state = self.state.lock();
            let settled = |(id, paths): (FileId, Vec<PathBuf>)| {
                let place = &state.slots.get(&id).filter(|slot| is_whole(slot))?.record.place;
                let path = place.path();
                if paths.iter().any(|wanted| path.as_ref() != Some(wanted)) {
                    return None;
                }
                match (place, path) {
                    (Place::Linked { state: LinkState::Whole(mark), .. }, Some(path)) => {
                        Some((id, Some((path, *mark))))
                    }
                    (Place::Linked { .. }, _) => None,
                    _ => Some((id, None)),
                }
            };
            files.into_iter().filter_map(settled).collect()
        };
        if candidates.is_empty() {
            return Ok(HashSet::new());
        }
        let here: Vec<FileId> = layout::blocking(move || {
            let unchanged = |linked: &Option<(PathBuf, Fingerprint)>| match linked {
                None => true,
                Some((path, mark)) => {
                    std::fs::metadata(path).is_ok_and(|metadata| Fingerprint::of(&metadata) == *mark)
                }
            };
            let here = candidates.into_iter().filter(|(_, linked)| unchanged(linked));
            Ok(here.map(|(id, _)| id).collect())
        })
        .await?;
        let _guards = self.lock_all(here.iter().copied()).await;
        let mut batch = Batch::new();
        let mut settled = HashSet::new();
        {
            let state = self.state.lock();
            for id in here.into_iter().filter(|id| state.slots.get(id).is_some_and(is_whole)) {
                if !state.members.contains(&(id, member_of)) {
                    batch.put(MEMBERS, layout::member_key(&id, &member_of), vec![1]);
                }
                settled.insert(id);
            }
        }
        self.commit_in_parts(batch, Durability::Buffered).await?;
        self.state.lock().members.extend(settled.iter().map(|id| (*id, member_of)));
        Ok(settled)
    }
}

fn record_layout(size: u64) -> Result<PieceLayout, LibraryError> {
    small_record(size, Place::Files).layout()
}

fn small_record(size: u64, place: Place) -> Record {
    Record {
        size,
        kind: FileKind::File,
        published: false,
        place,
        names: Vec::new(),
        added_ms: now_ms(),
        complete: false,
        withdrawn: false,
    }
}

/// What became of a file: its id and size, the place that the library is to link, and whether something was in the
/// way at one of its paths.
type Written = (FileId, u64, Option<Place>, bool);

/// Writes files beneath a folder, under their final names. Blocks.
fn write_out(files: Vec<SmallFile>, output: &SmallOutput) -> Result<Vec<Written>, LibraryError> {
    let _filling = output.dir.filling.lock();
    let mut folders = Folders::new(&output.dir, output.force);
    let mut written = Vec::with_capacity(files.len());
    for file in files {
        let (mut place, mut in_the_way) = (None, false);
        for (path, executable) in &file.paths {
            match folders.write(path, *executable, &file.content)? {
                Some(mark) if place.is_none() => {
                    let rel = std::path::Path::new(path.as_str());
                    place = Some(Place::linked(output.dir.root(), rel, LinkState::Whole(mark)));
                }
                Some(_) => {}
                None => in_the_way = true,
            }
        }
        written.push((file.id, file.content.len() as u64, place, in_the_way));
    }
    Ok(written)
}
