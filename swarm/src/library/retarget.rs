//! Another destination for an incomplete file: its stored pieces move there. The last command decides where a file is.
//!
//! The content is at the new place before the record names it, and the old place is cleared afterwards. While it is unknown
//! which place the index names, both keep the content.

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
        let (mut import, mut is_same_name) = (None, false);
        let (new, place, existing) = match found {
            whole @ Found::Whole(..) => return Ok(Retargeted::Whole(whole)),
            Found::Library => {
                // A sweep or a removal in progress has ended by then, and the next one sees the import.
                let _guard = inner.lock(&id).await;
                if file.is_retired() {
                    return Ok(Retargeted::Retired);
                }
                import = Some(Import::begin(inner, id));
                let place = inner.content.place();
                (self.open_own(&id, &place).await?, place, None)
            }
            Found::Free(target, existing) => {
                let current = match &old {
                    FileStore::Part(part) => Some(Arc::clone(part)),
                    _ => None,
                };
                let part;
                (part, is_same_name) = blocking(move || open_part(target, current)).await?;
                let place = part.target.part_place(part.file.inode()?);
                (FileStore::Part(Arc::new(part)), place, existing)
            }
        };
        let copied = file.copy_pieces(&old, &new).await;
        let mut guard = inner.lock(&id).await;
        let (unused, result) = match copied {
            _ if file.is_retired() => (place, Ok(Retargeted::Retired)),
            Ok(damaged) => match inner.switch(file, &damaged, new, place.clone()).await {
                Ok(Ok(before)) => (before, Ok(Retargeted::Moved(existing))),
                Ok(Err(error)) => {
                    drop(guard);
                    // The index may name the new place until it has the current record durably.
                    inner.mark_dirty(Arc::clone(file) as _, 0);
                    if file.checkpoint().await.is_err() {
                        return Err(error);
                    }
                    guard = inner.lock(&id).await;
                    (place, Err(error))
                }
                Err(error) => (place, Err(error)),
            },
            Err(error) => (place, Err(error)),
        };
        drop(import);
        let used = inner.state.lock().slots.get(&id).map(|slot| slot.record.place.path());
        if !is_same_name && used != Some(unused.path()) {
            inner.remove_content(&id, &unused, file.layout()).await?;
        }
        drop(guard);
        result
    }
}

impl LibraryInner {
    /// Records the new place of a file, and drops its damaged pieces. Returns the place before, or as the inner error a failure
    /// with unknown outcome. The caller holds the lock of the id.
    async fn switch(
        &self,
        file: &LibraryFile,
        damaged: &[PieceIndex],
        new: FileStore,
        place: ContentPlace,
    ) -> Result<Result<ContentPlace>> {
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
        let committed = self.try_commit(batch, Durability::Durable).await;
        if !matches!(committed, Ok(Ok(()))) {
            set_place(before.clone());
            return committed.map(|unknown| unknown.map(|()| before));
        }
        self.state.lock().set_stored(&id);
        {
            let mut state = file.state.lock();
            state.store = new;
            state.allocated = false;
        }
        file.update_progress();
        Ok(Ok(before))
    }
}

/// Creates the part file of a target, or gives the current one its name. Also returns whether that is the name it has
/// already: its directory may be mounted at several paths.
fn open_part(target: Target, current: Option<Arc<PartFile>>) -> Result<(PartFile, bool)> {
    if let Some(current) = current
        && (target.names(&current.file) || target.link_part(&current.target, &current.file)?)
    {
        let is_same_name = target.is_same_part(&current.target);
        return Ok((PartFile { file: current.file.at(target.path()), target }, is_same_name));
    }
    let (file, _) = target.create_part()?;
    Ok((PartFile { file, target }, false))
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
                (FileStore::Part(part), Some(target)) => part.target != target || !target.names(&part.file),
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
