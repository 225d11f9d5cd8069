//! Whole small files, many at a time: read in one go, and added with few commits.
//!
//! A small file has one piece or none. For each the usual way would cost an open file, some commits and tasks of
//! its own, which for thousands of them is most of the work. Here a batch is written by one task and noted by one
//! commit. Until the next checkpoint such a file is *fresh*: it is there, but not known to be synced, and its record
//! is not complete. Who opens it meanwhile gets it as any other file that waits for its sync.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::content::{ContentStore, DatabaseContent};
use super::content_files::{self, ContentFile};
use super::create::now_ms;
use super::error::LibraryError;
use super::file::Bits;
use super::layout::{self, DIRTY, LinkState, MEMBERS, Place, Record};
use super::library::Library;
use super::linked::{Fingerprint, open_regular};
use super::output::OutputDir;
use super::shared::{Shared, Slot, State};
use super::whole::Folders;
use crate::model::bitmap::Bitmap;
use crate::model::collection::MemberPath;
use crate::model::id::FileId;
use crate::model::layout::{MIN_PIECE_SIZE, PieceLayout};
use crate::model::record::FileKind;
use crate::storage::value::{Batch, Durability};

/// The largest file that counts as small, in bytes: one piece.
pub const MAX_SMALL: u64 = MIN_PIECE_SIZE as u64;
/// From how many fresh files on a checkpoint begins, and at how many those who add more wait for it.
const SOFT_FRESH: usize = 8 * 1024;
const HARD_FRESH: usize = 32 * 1024;
/// How many files are hashed at once when a library is opened after a crash.
const RECOVER_AT_ONCE: usize = 64;

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

/// What could be read of a batch of small files.
#[derive(Debug, Clone, Default)]
pub struct SmallContent {
    /// The size of each file, in the order of the question; none where it is not here.
    pub sizes: Vec<Option<u64>>,
    /// The content of those that are here, one after the other.
    pub content: Bytes,
}

/// The fresh files and their sizes.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    files: HashMap<FileId, u64>,
    bytes: u64,
}

impl Fresh {
    fn insert(&mut self, id: FileId, size: u64) {
        self.remove(&id);
        self.bytes += size;
        self.files.insert(id, size);
    }

    /// It is fresh no longer: opened, synced, changed or gone.
    pub(super) fn remove(&mut self, id: &FileId) -> bool {
        let size = self.files.remove(id);
        self.bytes -= size.unwrap_or(0);
        size.is_some()
    }

    pub(super) fn contains(&self, id: &FileId) -> bool {
        self.files.contains_key(id)
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there are too many to go on without a checkpoint.
    pub(super) fn are_too_many(&self) -> bool {
        self.files.len() >= HARD_FRESH
    }
}

/// What a checkpoint makes durable of the fresh files.
#[derive(Debug, Default)]
pub(super) struct FreshPlan {
    ids: Vec<FileId>,
    pub(super) in_database: bool,
    folders: BTreeSet<PathBuf>,
}

impl FreshPlan {
    pub(super) fn ids(&self) -> impl Iterator<Item = FileId> {
        self.ids.iter().copied()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Where a small file can be read.
enum Source {
    Nowhere,
    Database,
    File(PathBuf),
    Linked(PathBuf, Fingerprint),
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

    /// Reads small files in one go. A linked one is hashed; one that turns out to be damaged or changed is no
    /// longer claimed afterwards.
    pub async fn read_small(&self, ids: &[FileId]) -> Result<SmallContent, LibraryError> {
        self.shared.check_open()?;
        let (read, odd) = self.shared.read_small(ids).await?;
        for id in odd {
            // The usual way finds out what is wrong with it and draws the consequences.
            if let Ok(Some(file)) = self.open_file(&id).await
                && let Some(piece) = file.layout().last()
                && let Err(error) = file.read_piece(piece).await
            {
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
    /// Reads small files that are here. Returns as well those that should be and could not be read so.
    async fn read_small(&self, ids: &[FileId]) -> Result<(SmallContent, Vec<FileId>), LibraryError> {
        let sources: Vec<(FileId, u64, Source)> = {
            let state = self.state.lock();
            let source = |id: &FileId| match state.whole_small(id) {
                Some(slot) => (*id, slot.record.size, self.source_of(id, &slot.record)),
                None => (*id, 0, Source::Nowhere),
            };
            ids.iter().map(source).collect()
        };
        self.read_sources(sources, false).await
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

    /// Reads small files from where they are said to be. What is linked is hashed, or with `hash_all` everything.
    async fn read_sources(
        &self,
        sources: Vec<(FileId, u64, Source)>,
        hash_all: bool,
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
                let mut hash = hash_all;
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
                    Source::Linked(path, mark) => {
                        hash = true;
                        read_whole(&path, Some(mark), target)
                    }
                };
                if read && (!hash || blake3::hash(target) == *id.as_bytes()) {
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
    pub(super) async fn recover_small(&self, ids: BTreeSet<FileId>) -> Result<Vec<FileId>, LibraryError> {
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
            let (read, odd) = self.read_sources(some, true).await?;
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
                    self.state.lock().importing.extend(&ids);
                }
                let result = async {
                    self.write_in(files).await?;
                    self.note_small(added, member_of).await
                };
                let result = result.await;
                let mut state = self.state.lock();
                for id in &ids {
                    state.importing.remove(id);
                }
                blocked = result?;
            }
        }
        Ok(blocked)
    }

    /// Writes files into the library's own store.
    async fn write_in(&self, files: Vec<SmallFile>) -> Result<(), LibraryError> {
        match &self.content {
            ContentStore::Database(content) => {
                let files = files.into_iter().map(|file| (file.id, file.content)).collect();
                DatabaseContent(Arc::clone(content)).write_small(files).await
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
        let (bytes, count) = {
            let mut state = self.state.lock();
            state.members.extend(members.into_iter().map(|id| (id, member_of)));
            for (id, record) in new {
                let (size, pieces) = (record.size, record.layout()?.count());
                let mut slot = Slot::new(record, true, pieces);
                slot.proven = true;
                state.insert(id, slot);
                state.fresh.insert(id, size);
            }
            (state.fresh.bytes, state.fresh.files.len())
        };
        self.flush_some_time.notify_one();
        if bytes >= self.settings.checkpoint_bytes || count >= SOFT_FRESH {
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

    /// What is to be synced of the fresh files.
    pub(super) fn plan_fresh(&self) -> FreshPlan {
        let state = self.state.lock();
        let mut plan = FreshPlan::default();
        for id in state.fresh.files.keys() {
            let Some(slot) = state.slots.get(id) else { continue };
            match (&slot.record.place, &self.content) {
                (Place::Database, _) => plan.in_database = true,
                (Place::Files, ContentStore::Files(dir)) => {
                    plan.folders.insert(dir.clone());
                }
                (place, _) => {
                    if let Some((root, _)) = place.root_and_rel()
                        && !plan.folders.contains(root)
                    {
                        plan.folders.insert(root.to_owned());
                    }
                }
            }
            plan.ids.push(*id);
        }
        plan
    }

    /// Syncs the file systems that the fresh files are on.
    pub(super) async fn sync_fresh(&self, plan: &FreshPlan) -> Result<(), LibraryError> {
        if plan.folders.is_empty() {
            return Ok(());
        }
        let folders = plan.folders.clone();
        layout::blocking(move || {
            let mut devices = HashSet::new();
            for folder in &folders {
                let failed = |error| LibraryError::io("sync", folder, error);
                match std::fs::metadata(folder) {
                    Ok(metadata) if devices.insert(metadata.dev()) => content_files::sync_all_of(folder)?,
                    Ok(_) => {}
                    // It went, and the files with it.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            Ok(())
        })
        .await
    }

    /// Adds to a checkpoint that the fresh files are complete. The caller has synced them and holds their locks.
    pub(super) fn put_fresh(&self, plan: &FreshPlan, batch: &mut Batch) {
        let mut state = self.state.lock();
        let state = &mut *state;
        for id in plan.ids.iter().filter(|id| state.fresh.contains(id)) {
            if let Some(slot) = state.slots.get_mut(id) {
                slot.record.complete = true;
                slot.stored = false;
            }
            state.put_record(batch, id);
            batch.delete(DIRTY, layout::page_key(id, 0));
        }
    }

    /// Takes note of how the checkpoint went.
    pub(super) fn end_fresh(&self, plan: &FreshPlan, applied: bool) {
        let mut state = self.state.lock();
        for id in &plan.ids {
            if !state.fresh.contains(id) {
                continue;
            }
            if applied {
                state.fresh.remove(id);
            }
            if let Some(slot) = state.slots.get_mut(id) {
                slot.stored = applied;
                slot.record.complete = applied;
            }
        }
    }
}

/// The bits of a fresh file that is opened: all of it is here, and nothing is synced.
pub(super) fn make_fresh(bits: &mut Bits, layout: PieceLayout) {
    bits.have = Bitmap::full(layout);
    bits.intended = Bitmap::full(layout);
    bits.unsynced = layout.pieces().collect();
    bits.unsynced_bytes = layout.size();
    bits.allocated = true;
    bits.finished = true;
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

/// Reads a file that has exactly this length and, if it is the user's, looks as it did. Blocks.
fn read_whole(path: &std::path::Path, mark: Option<Fingerprint>, target: &mut [u8]) -> bool {
    let Ok((file, metadata)) = open_regular(path) else { return false };
    mark.is_none_or(|mark| Fingerprint::of(&metadata) == mark) && file.read_exact_at(target, 0).is_ok()
}

/// What became of a file: its id and size, the place that the library is to link, and whether something was in the
/// way at one of its paths.
type Written = (FileId, u64, Option<Place>, bool);

/// Writes files beneath a folder, under their final names. Blocks.
fn write_out(files: Vec<SmallFile>, output: &SmallOutput) -> Result<Vec<Written>, LibraryError> {
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
