//! Another destination for an incomplete file: its stored pieces move there. The last command decides where a file is.
//!
//! The content is at the new place before the record names it, and the old place is cleared afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::{FileStore, PartFile};
use super::inner::LibraryInner;
use super::layout::{self, ContentPlace, HAVE};
use super::open_files::OpenFiles;
use super::output::{Destination, Found, Target};
use super::task::blocking;
use enjambre_core::{Batch, Durability, FileId, PieceIndex};

/// The number of bytes of pieces that are copied at once.
const COPY_BYTES: usize = 4 << 20;

/// The result of [`OpenFiles::retarget`].
pub(super) enum Retargeted {
    /// The content is at the destination, which may have held an older copy of the file.
    Moved(Option<File>),
    /// The destination has the whole content already, so the file has to be created anew.
    Whole(Found),
    /// The library dropped the file meanwhile.
    Retired,
}

/// Protects content that no record names from the sweep.
struct Import<'a>(&'a LibraryInner, FileId);

impl<'a> Import<'a> {
    fn begin(inner: &'a LibraryInner, id: FileId) -> Self {
        inner.state.lock().begin_import(id);
        Self(inner, id)
    }
}

impl Drop for Import<'_> {
    fn drop(&mut self) {
        self.0.state.lock().end_import(&self.1);
    }
}

impl OpenFiles {
    /// Moves the stored pieces of an incomplete file to another destination. The lock of the id is held only after the copy,
    /// which may take long: checkpoints need the lock.
    pub(super) async fn retarget(
        &self,
        file: &Arc<LibraryFile>,
        destination: Destination,
    ) -> Result<Retargeted> {
        let (inner, id) = (&self.inner, file.id());
        // Later writes use the new place.
        let _gate = file.gate.write().await;
        // The writes in progress may have changed this.
        if !file.moves_to(&destination).await? {
            return Ok(Retargeted::Moved(None));
        }
        let (manifest, old) = (Arc::clone(file.manifest()), file.state.lock().store.clone());
        let found = blocking(move || Found::at(Target::resolve(&destination)?, &manifest)).await?;
        let import = matches!(found, Found::Library).then(|| Import::begin(inner, id));
        let (new, place, existing) = match found {
            whole @ Found::Whole(..) => return Ok(Retargeted::Whole(whole)),
            Found::Library => {
                let place = inner.content.place();
                (self.open_own(&id, &place).await?, place, None)
            }
            Found::Free(target, existing) => {
                let part = match &old {
                    FileStore::Part(part) => Some(Arc::clone(part)),
                    _ => None,
                };
                let part = blocking(move || open_part(target, part)).await?;
                let place = part.target.part_place(part.file.inode()?);
                (FileStore::Part(Arc::new(part)), place, existing)
            }
        };
        let copied = file.copy_pieces(&old, &new).await;
        let _guard = inner.lock(&id).await;
        drop(import);
        let (unused, result) = match copied {
            _ if file.is_retired() => (place, Ok(Retargeted::Retired)),
            Ok(damaged) => match inner.switch(file, &damaged, new, place.clone()).await {
                Ok(before) => (before, Ok(Retargeted::Moved(existing))),
                Err(error) => (place, Err(error)),
            },
            Err(error) => (place, Err(error)),
        };
        let used = inner.state.lock().slots.get(&id).map(|slot| slot.record.place.path());
        if used != Some(unused.path()) {
            inner.remove_content(&id, &unused, file.layout()).await?;
        }
        result
    }
}

impl LibraryInner {
    /// Records the new place of a file, and drops its damaged pieces. Returns the place before. The caller holds the lock of
    /// the id.
    async fn switch(
        &self,
        file: &LibraryFile,
        damaged: &[PieceIndex],
        new: FileStore,
        place: ContentPlace,
    ) -> Result<ContentPlace> {
        let (id, layout) = (file.id(), file.layout());
        let mut batch = Batch::new();
        {
            let mut state = file.state.lock();
            state.remove_pieces(damaged);
            for page in 0..layout::bitmap_pages(layout) {
                layout::put_bitmap_page(&mut batch, HAVE, &id, &state.synced, page);
            }
        }
        let set_place = |place: ContentPlace| {
            let mut state = self.state.lock();
            let mut slot = state.remove(&id)?;
            let before = std::mem::replace(&mut slot.record.place, place);
            slot.stored = false;
            state.insert(id, slot);
            Some(before)
        };
        let Some(before) = set_place(place) else { return Err(LibraryError::not_found(id)) };
        self.state.lock().put_record(&mut batch, &id);
        if let Err(error) = self.commit_in_parts(batch, Durability::Durable).await {
            set_place(before);
            return Err(error);
        }
        self.state.lock().set_stored(&id);
        {
            let mut state = file.state.lock();
            state.store = new;
            state.allocated = false;
        }
        file.update_progress();
        Ok(before)
    }
}

/// Creates the part file of a target, or gives the current one its name.
fn open_part(target: Target, current: Option<Arc<PartFile>>) -> Result<PartFile> {
    if let Some(current) = current {
        let inode = current.file.inode()?;
        if target.has_part(inode) || target.link_part(&current.target, inode)? {
            return Ok(PartFile { file: current.file.at(target.path()), target });
        }
    }
    let (file, _) = target.create_part()?;
    Ok(PartFile { file, target })
}

impl LibraryFile {
    /// Whether the file is incomplete and at another place than the destination.
    pub(super) async fn moves_to(&self, destination: &Destination) -> Result<bool> {
        if self.is_finished() || matches!(destination, Destination::Keep) {
            return Ok(false);
        }
        let (current, destination) = (self.state.lock().store.clone(), destination.clone());
        blocking(move || {
            Ok(match (&current, Target::resolve(&destination)?) {
                (FileStore::Part(part), Some(target)) => {
                    part.target != target || !target.has_part(part.file.inode()?)
                }
                (FileStore::Part(_), None) => true,
                (_, target) => target.is_some(),
            })
        })
        .await
    }

    /// Copies the stored pieces and makes them durable at their new place. Returns the damaged ones.
    async fn copy_pieces(self: &Arc<Self>, old: &FileStore, new: &FileStore) -> Result<Vec<PieceIndex>> {
        let (have, layout) = (self.have(), self.layout());
        let is_same =
            matches!((old, new), (FileStore::Part(old), FileStore::Part(new)) if old.file.is_same(&new.file));
        let is_copied = |piece: &PieceIndex| !is_same && have.contains(*piece);
        let stored: Vec<PieceIndex> = layout.pieces().filter(is_copied).collect();
        let mut damaged = Vec::new();
        for some in stored.chunks((COPY_BYTES / layout.piece_size() as usize).max(1)) {
            self.check_usable()?;
            let mut pieces: Vec<(PieceIndex, Bytes)> = Vec::with_capacity(some.len());
            for piece in some {
                match self.read_from(old.clone(), *piece, false).await? {
                    Some(content) => pieces.push((*piece, content)),
                    None => damaged.push(*piece),
                }
            }
            self.write_content(new.clone(), pieces, false).await?;
        }
        match new.clone() {
            FileStore::Part(part) => {
                let synced = blocking(move || {
                    let synced = part.file.file.sync_all();
                    synced.map_err(|error| LibraryError::io("sync", &part.file.path, error))?;
                    part.target.sync_dir()
                });
                synced.await?;
            }
            _ => self.inner.content.sync().await?,
        }
        Ok(damaged)
    }

    /// Stores the missing pieces that an older or truncated copy of the file has at the same offsets.
    pub(super) async fn reuse(self: &Arc<Self>, copy: File) -> Result<()> {
        let (copy, layout, have) = (Arc::new(copy), self.layout(), self.have());
        let missing: Vec<PieceIndex> = layout.pieces().filter(|piece| !have.contains(*piece)).collect();
        for some in missing.chunks((COPY_BYTES / layout.piece_size() as usize).max(1)) {
            let (copy, some) = (Arc::clone(&copy), some.to_vec());
            let pieces: Vec<(PieceIndex, Bytes)> = blocking(move || {
                let read = some.into_iter().map_while(|piece| {
                    let mut content = vec![0; layout.len(piece)];
                    copy.read_exact_at(&mut content, layout.offset(piece)).ok()?;
                    Some((piece, content.into()))
                });
                Ok(read.collect())
            })
            .await?;
            if pieces.is_empty() {
                return Ok(());
            }
            // Only the valid ones are stored.
            self.write_pieces(pieces).await?;
        }
        Ok(())
    }
}
