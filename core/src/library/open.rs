//! Opening a file of the library: its manifest, its bits, and the place where its content is.

use std::sync::Arc;

use super::content::{ContentStore, DatabaseContent};
use super::content_files::ContentFile;
use super::entry::LibraryEvent;
use super::error::LibraryError;
use super::file::{Bits, LibraryFile, PartFile, Store};
use super::layout::{self, DIRTY, HASHES, HAVE, LinkState, Place, Record};
use super::linked::{Fingerprint, LinkedFile};
use super::output::Target;
use super::shared::Shared;
use super::small::fresh::make_fresh;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::PieceLayout;
use crate::model::manifest::Manifest;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Durability, Key, Space};

/// How many records are asked for at once: 2 MiB of hashes.
const KEYS_AT_ONCE: usize = 64;

/// A place that was opened.
struct Opened {
    store: Store,
    finished: bool,
    /// The place as it is now, where it is not the one of the record.
    moved: Option<Place>,
}

impl Shared {
    /// Opens a file that is not withdrawn. The caller holds the lock of the id.
    pub(super) async fn open_locked(
        self: &Arc<Self>,
        id: &FileId,
    ) -> Result<Option<Arc<LibraryFile>>, LibraryError> {
        self.check_open()?;
        let found = {
            let state = self.state.lock();
            let Some(slot) = state.slots.get(id).filter(|slot| !slot.record.withdrawn) else {
                return Ok(None);
            };
            match slot.file.upgrade() {
                Some(file) => Err(file),
                None => Ok((slot.record.clone(), slot.proven, state.fresh.contains(id))),
            }
        };
        let (record, proven, fresh) = match found {
            Ok(found) => found,
            Err(open) if open.is_still_there().await? => return Ok(Some(open)),
            Err(_gone) => {
                self.withdraw_locked(id).await?;
                return Ok(None);
            }
        };
        let layout = record.layout()?;
        let manifest = self.load_manifest(id, layout).await?;
        let Some(opened) = self.open_place(id, &record).await? else {
            self.withdraw_locked(id).await?;
            return Ok(None);
        };
        let synced = match record.complete {
            true => Bitmap::full(layout),
            false => self.load_bitmap(HAVE, id, layout).await?,
        };
        let mut bits = Bits::new(layout, synced, opened.store, opened.finished);
        if fresh {
            make_fresh(&mut bits, layout);
        } else if !record.complete {
            bits.intended = self.load_bitmap(DIRTY, id, layout).await?;
        }
        if proven && opened.moved.is_none() && matches!(bits.store, Store::Linked(_)) {
            bits.verified = Bitmap::full(layout);
        }
        let have = bits.have.count();
        let file = LibraryFile::new(Arc::clone(self), Arc::new(manifest), record.kind, bits);
        if let Some(slot) = self.state.lock().slots.get_mut(id) {
            slot.file = Arc::downgrade(&file);
            slot.have = have;
            if let Some(place) = opened.moved {
                slot.record.place = place;
                slot.stored = false;
                slot.proven = false;
            }
        }
        if fresh {
            // From here on the open file sees to its sync.
            self.state.lock().fresh.remove(id);
            self.mark_dirty(&file, layout.size());
        }
        Ok(Some(file))
    }

    pub(crate) async fn load_manifest(
        &self,
        id: &FileId,
        layout: PieceLayout,
    ) -> Result<Manifest, LibraryError> {
        load_manifest(&*self.index, id, layout).await
    }

    async fn load_bitmap(
        &self,
        space: Space,
        id: &FileId,
        layout: PieceLayout,
    ) -> Result<Bitmap, LibraryError> {
        load_bitmap(&*self.index, space, id, layout).await
    }

    /// Opens the store of content that is the library's own.
    pub(super) async fn open_own(&self, id: &FileId, place: &Place) -> Result<Store, LibraryError> {
        match (place, &self.content) {
            (Place::Database, ContentStore::Database(content)) => {
                Ok(Store::Database(DatabaseContent(Arc::clone(content))))
            }
            (Place::Files, ContentStore::Files(dir)) => {
                let (dir, id) = (dir.clone(), *id);
                layout::blocking(move || Ok(Store::File(Arc::new(ContentFile::open(&dir, &id)?)))).await
            }
            _ => Err(LibraryError::OtherStore { id: *id }),
        }
    }

    /// The place that new content of the library's own goes to.
    pub(super) const fn own_place(&self) -> Place {
        match self.content {
            ContentStore::Database(_) => Place::Database,
            ContentStore::Files(_) => Place::Files,
        }
    }

    /// Opens the place of a file; `None` where its content is gone or another one.
    async fn open_place(&self, id: &FileId, record: &Record) -> Result<Option<Opened>, LibraryError> {
        let Place::Linked { state, .. } = &record.place else {
            let store = self.open_own(id, &record.place).await?;
            return Ok(Some(Opened { store, finished: record.complete, moved: None }));
        };
        let (id, place, state, complete) = (*id, record.place.clone(), state.clone(), record.complete);
        layout::blocking(move || open_linked(id, &place, &state, complete)).await
    }

    /// Offers a file no longer, since its content is gone or another one. The caller holds the lock of the id.
    pub(super) async fn withdraw_locked(&self, id: &FileId) -> Result<(), LibraryError> {
        let file = {
            let mut state = self.state.lock();
            let Some(slot) = state.slots.get_mut(id).filter(|slot| !slot.record.withdrawn) else {
                return Ok(());
            };
            slot.record.withdrawn = true;
            slot.proven = false;
            slot.stored = false;
            let file = std::mem::take(&mut slot.file).upgrade();
            tracing::warn!(%id, path = ?slot.record.place.path(), "a linked file changed or is gone; it is withdrawn");
            state.fresh.remove(id);
            file
        };
        if let Some(file) = file {
            file.retire_from();
        }
        self.tell(LibraryEvent::Withdrawn(*id));
        self.store_record(id, Durability::Buffered).await
    }
}

/// The manifest of a file, as the index has it, proven against the id.
pub(super) async fn load_manifest(
    index: &dyn Storage,
    id: &FileId,
    layout: PieceLayout,
) -> Result<Manifest, LibraryError> {
    let pages = load_pages(index, HASHES, id, layout::hash_pages(layout)).await?;
    let mut hashes = Vec::with_capacity(layout.count() as usize);
    for page in pages.iter().flatten() {
        hashes.extend_from_slice(page.as_chunks::<32>().0);
    }
    if layout.count() == 1 {
        hashes.push(*id.as_bytes());
    }
    Manifest::verify(*id, layout, hashes).map_err(|error| {
        LibraryError::Storage(StorageError::Corrupt {
            what: format!("the library's piece hashes of {id}"),
            source: Some(Box::new(error)),
        })
    })
}

/// The bits of a file, as the index has them.
pub(super) async fn load_bitmap(
    index: &dyn Storage,
    space: Space,
    id: &FileId,
    layout: PieceLayout,
) -> Result<Bitmap, LibraryError> {
    let pages = load_pages(index, space, id, layout::bitmap_pages(layout)).await?;
    Ok(layout::bitmap_from_pages(layout, &pages))
}

async fn load_pages(
    index: &dyn Storage,
    space: Space,
    id: &FileId,
    count: usize,
) -> Result<Vec<Option<bytes::Bytes>>, LibraryError> {
    let keys: Vec<Key> = (0..count).map(|page| layout::page_key(id, page)).collect();
    let mut pages = Vec::with_capacity(count);
    for keys in keys.chunks(KEYS_AT_ONCE) {
        pages.extend(index.get(space, keys).await?);
    }
    Ok(pages)
}

/// Opens a file of the user. A crash may have come between its renaming and the record of it, in either order.
fn open_linked(
    id: FileId,
    place: &Place,
    state: &LinkState,
    complete: bool,
) -> Result<Option<Opened>, LibraryError> {
    let (Some((root, rel)), Some(path)) = (place.root_and_rel(), place.path()) else { return Ok(None) };
    let whole = |mark: Fingerprint, moved: bool| Opened {
        store: Store::Linked(Arc::new(LinkedFile::new(id, path.clone(), mark, None))),
        finished: true,
        moved: moved.then(|| Place::linked(root, rel, LinkState::Whole(mark))),
    };
    let (inode, executable, force) = match state {
        LinkState::Whole(mark) => {
            let opened = whole(*mark, false);
            if let Store::Linked(linked) = &opened.store
                && linked.check().is_ok()
            {
                return Ok(Some(opened));
            }
            if complete {
                return Ok(None);
            }
            (mark.inode(), false, false)
        }
        LinkState::Part { inode, executable, force } => (*inode, *executable, *force),
    };
    let Ok(target) = Target::reopen(root, rel, executable, force) else { return Ok(None) };
    if let Some(file) = target.open_part(inode)? {
        let state = LinkState::Part { inode, executable, force };
        let moved = Some(Place::linked(root, rel, state));
        let store = Store::Part(Arc::new(PartFile { file, target }));
        return Ok(Some(Opened { store, finished: false, moved }));
    }
    match target.open_existing() {
        Ok(Some((_, metadata))) => {
            let mark = Fingerprint::of(&metadata);
            Ok((mark.inode() == inode).then(|| whole(mark, true)))
        }
        _ => Ok(None),
    }
}
