//! The open files of the library. A file is open at most once, so all of its users share one [`LibraryFile`].

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::content::{ContentStore, DatabaseContent};
use super::content_files::ContentFile;
use super::entry::WithdrawReason;
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::{FileState, FileStore, PartFile};
use super::inner::LibraryInner;
use super::layout::{ContentPlace, DIRTY, HAVE, LinkState, Record};
use super::linked::{Fingerprint, LinkedFile};
use super::load::{load_bitmap, load_manifest};
use super::output::Target;
use super::task::{blocking, in_task};
use enjambre_core::runtime::HashMap;
use enjambre_core::{Bitmap, FileId};

/// The smallest number of map entries at which entries of closed files are removed.
const MIN_PRUNE: usize = 1024;

/// The open files, and the operations that open, create, replace and remove files.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    pub(super) inner: Arc<LibraryInner>,
    open: Mutex<OpenMap>,
}

#[derive(Debug, Default)]
struct OpenMap {
    files: HashMap<FileId, Weak<LibraryFile>>,
    prune_at: usize,
}

struct Opened {
    store: FileStore,
    finished: bool,
    /// The place of the content if it differs from the record.
    moved: Option<ContentPlace>,
}

impl OpenFiles {
    pub(super) fn new(inner: Arc<LibraryInner>) -> Self {
        Self { inner, open: Mutex::default() }
    }

    /// Returns the file if it is open.
    pub(super) fn get(&self, id: &FileId) -> Option<Arc<LibraryFile>> {
        let file = self.open.lock().files.get(id).and_then(Weak::upgrade)?;
        (!file.is_retired()).then_some(file)
    }

    pub(super) fn insert(&self, file: &Arc<LibraryFile>) {
        let mut open = self.open.lock();
        if open.files.len() >= open.prune_at {
            open.files.retain(|_, file| file.strong_count() > 0);
            open.prune_at = MIN_PRUNE.max(2 * open.files.len());
        }
        open.files.insert(file.id(), Arc::downgrade(file));
    }

    /// Detaches the open file from the library, if there is one. The caller holds the lock of the id.
    pub(super) fn retire(&self, id: &FileId) {
        let file = self.open.lock().files.remove(id);
        if let Some(file) = file.and_then(|file| file.upgrade()) {
            file.retire();
        }
    }

    /// Withdraws a linked file. The caller holds the lock of the id.
    pub(super) async fn withdraw_locked(&self, id: &FileId, reason: WithdrawReason) -> Result<()> {
        self.retire(id);
        self.inner.withdraw(id, reason).await
    }

    /// Opens a file unless it is withdrawn.
    pub(super) async fn open(self: &Arc<Self>, id: &FileId) -> Result<Option<Arc<LibraryFile>>> {
        let _guard = self.inner.lock(id).await;
        self.open_locked(id).await
    }

    /// Same as [`Self::open`], but completes even if the future is dropped.
    pub(super) async fn spawn_open(self: &Arc<Self>, id: &FileId) -> Result<Option<Arc<LibraryFile>>> {
        let (files, id) = (Arc::clone(self), *id);
        in_task(async move { files.open(&id).await }).await
    }

    /// Opens a complete file.
    pub(super) async fn open_complete(self: &Arc<Self>, id: &FileId) -> Result<Arc<LibraryFile>> {
        let withdrawn =
            self.inner.state.lock().slots.get(id).is_some_and(|slot| slot.record.withdrawn.is_some());
        let Some(file) = self.open(id).await? else {
            let path = self.inner.state.lock().slots.get(id).and_then(|slot| slot.record.place.path());
            return match path {
                Some(path) if withdrawn => Err(LibraryError::Changed { id: *id, path }),
                _ => Err(LibraryError::not_found(id)),
            };
        };
        if !file.is_complete() {
            let (have, pieces) = (file.have_count(), file.layout().count());
            return Err(LibraryError::Incomplete { id: *id, have, pieces });
        }
        Ok(file)
    }

    /// Opens a file unless it is withdrawn. The caller holds the lock of the id.
    pub(super) async fn open_locked(self: &Arc<Self>, id: &FileId) -> Result<Option<Arc<LibraryFile>>> {
        let inner = &self.inner;
        inner.check_open()?;
        let (record, unsynced) = {
            let state = inner.state.lock();
            let Some(slot) = state.slots.get(id).filter(|slot| slot.record.withdrawn.is_none()) else {
                return Ok(None);
            };
            (slot.record.clone(), state.unsynced_small.number(id).is_some())
        };
        if let Some(open) = self.get(id) {
            return match open.changed_link().await? {
                Some(linked) if !open.relink_locked(&linked, false).await? => Ok(None),
                _ => Ok(Some(open)),
            };
        }
        let layout = record.layout()?;
        let manifest = load_manifest(&*inner.index, id, layout).await?;
        let opened = match self.open_content(id, &record).await? {
            Ok(opened) => opened,
            Err(reason) => {
                self.withdraw_locked(id, reason).await?;
                return Ok(None);
            }
        };
        let verified = inner.state.lock().slots.get(id).is_some_and(|slot| slot.verified);
        let synced = match record.complete {
            true => Bitmap::full(layout),
            false => load_bitmap(&*inner.index, HAVE, id, layout).await?,
        };
        let mut file_state = FileState::new(layout, synced, opened.store, opened.finished);
        if unsynced {
            file_state.set_unsynced(layout);
        } else if !record.complete {
            file_state.intended = load_bitmap(&*inner.index, DIRTY, id, layout).await?;
        }
        if verified && opened.moved.is_none() && matches!(file_state.store, FileStore::Linked(_)) {
            file_state.verified = Bitmap::full(layout);
        }
        let have = file_state.have.count();
        let file = LibraryFile::new(Arc::clone(inner), Arc::new(manifest), file_state);
        self.insert(&file);
        {
            let mut state = inner.state.lock();
            if let Some(slot) = state.slots.get_mut(id) {
                slot.have = have;
                if let Some(place) = opened.moved {
                    slot.record.place = place;
                    slot.stored = false;
                    slot.verified = false;
                }
            }
            // From now on the checkpoint syncs the open file instead.
            state.unsynced_small.remove(id);
        }
        if unsynced {
            inner.mark_dirty(Arc::clone(&file) as _, layout.size());
        }
        Ok(Some(file))
    }

    pub(super) async fn open_own(&self, id: &FileId, place: &ContentPlace) -> Result<FileStore> {
        match (place, &self.inner.content) {
            (ContentPlace::Database, ContentStore::Database(content)) => {
                Ok(FileStore::Database(DatabaseContent(Arc::clone(content))))
            }
            (ContentPlace::Files, ContentStore::Files(dir)) => {
                let (dir, id) = (dir.clone(), *id);
                blocking(move || Ok(FileStore::File(Arc::new(ContentFile::open(&dir, &id)?)))).await
            }
            _ => Err(LibraryError::OtherStore(*id)),
        }
    }

    /// Opens the content of a file, or returns why a linked file has to be withdrawn.
    async fn open_content(&self, id: &FileId, record: &Record) -> Result<Result<Opened, WithdrawReason>> {
        let ContentPlace::Linked { state, .. } = &record.place else {
            let store = self.open_own(id, &record.place).await?;
            return Ok(Ok(Opened { store, finished: record.complete, moved: None }));
        };
        if record.complete {
            let store = self.inner.relocate(id).await?.map(FileStore::Linked);
            return Ok(store.map(|store| Opened { store, finished: true, moved: None }));
        }
        let (id, place, state) = (*id, record.place.clone(), state.clone());
        blocking(move || Ok(open_linked(id, &place, &state)?.ok_or(WithdrawReason::Changed))).await
    }
}

/// Opens an incomplete linked file. After a crash the record may be older or newer than the rename of the part
/// file.
fn open_linked(id: FileId, place: &ContentPlace, state: &LinkState) -> Result<Option<Opened>> {
    let (Some((root, rel)), Some(path)) = (place.root_and_rel(), place.path()) else { return Ok(None) };
    let whole = |fingerprint: Fingerprint, moved: bool| Opened {
        store: FileStore::Linked(Arc::new(LinkedFile::new(id, path.clone(), fingerprint, None))),
        finished: true,
        moved: moved.then(|| ContentPlace::linked(root, rel, LinkState::Whole(fingerprint))),
    };
    let (inode, executable, force) = match state {
        LinkState::Whole(fingerprint) => {
            let opened = whole(*fingerprint, false);
            if let FileStore::Linked(linked) = &opened.store
                && linked.check().is_ok()
            {
                return Ok(Some(opened));
            }
            (fingerprint.inode, false, false)
        }
        LinkState::Part { inode, executable, force } => (*inode, *executable, *force),
    };
    let Ok(target) = Target::reopen(root, rel, executable, force) else { return Ok(None) };
    if let Some(file) = target.open_part(inode)? {
        let moved = Some(target.part_place(inode));
        let store = FileStore::Part(Arc::new(PartFile { file, target }));
        return Ok(Some(Opened { store, finished: false, moved }));
    }
    match target.open_existing() {
        Ok(Some((_, metadata))) => {
            let fingerprint = Fingerprint::of(&metadata);
            Ok((fingerprint.inode == inode).then(|| whole(fingerprint, true)))
        }
        _ => Ok(None),
    }
}
