//! Beginning a file, or going on with one that is there.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::entry::{LibraryEvent, NewFile};
use super::error::LibraryError;
use super::file::{Bits, LibraryFile, PartFile, Store};
use super::layout::{self, LinkState, MAX_NAMES, NameRecord, Place, Record};
use super::linked::{Fingerprint, LinkedFile};
use super::output::{Destination, Target};
use super::shared::{Shared, Slot, State};
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::manifest::Manifest;
use crate::model::name::Name;
use crate::storage::value::{Batch, Durability};

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Where a file is to go, and what is there.
enum Found {
    /// It goes into the library.
    Library,
    /// Nothing is there, or something that is to be replaced.
    Free(Target),
    /// The file itself is there.
    Whole(Target, Fingerprint),
}

/// What is to be filled, or is there already.
enum Begun {
    Empty(Store, Place),
    Whole(Store, Place),
}

impl Shared {
    pub(super) async fn create(
        self: Arc<Self>,
        manifest: Manifest,
        new: NewFile,
        destination: Destination,
    ) -> Result<Arc<LibraryFile>, LibraryError> {
        self.check_open()?;
        let (id, layout) = (manifest.id(), manifest.layout());
        let since_ms = now_ms();
        // A large file at the destination takes long to hash: nobody waits for it who need not.
        let known = self.state.lock().slots.get(&id).is_some_and(|slot| !slot.record.withdrawn);
        let manifest = Arc::new(manifest);
        let looked = match known {
            true => None,
            false => Some(look(Arc::clone(&manifest), destination.clone()).await?),
        };
        let _guard = self.lock(&id).await;
        self.finish_removal(&id).await?;
        let mut names = Vec::new();
        if let Some(file) = self.open_locked(&id).await? {
            if file.layout().size() == layout.size() {
                self.adopt(&id, new.name, new.member_of).await?;
                return Ok(file);
            }
            if file.layout().last().is_none_or(|last| file.has(last)) {
                let (proven, claimed) = (file.layout().size(), layout.size());
                return Err(LibraryError::WrongSize { id, proven, claimed });
            }
        }
        // Withdrawn, or begun under a size that nobody proved: it begins anew.
        let old = self.state.lock().slots.get(&id).map(|slot| slot.record.clone());
        if let Some(old) = old {
            names.clone_from(&old.names);
            self.reset(&id, &old).await?;
        }

        let found = match looked {
            Some(found) => found,
            None => look(Arc::clone(&manifest), destination).await?,
        };
        let begun = match layout::blocking(move || begin(id, found)).await? {
            Some(begun) => begun,
            None => {
                let place = self.own_place();
                Begun::Empty(self.open_own(&id, &place).await?, place)
            }
        };
        let (mut bits, place, whole) = match begun {
            Begun::Empty(store, place) => {
                (Bits::new(layout, Bitmap::empty(layout), store, false), place, false)
            }
            Begun::Whole(store, place) => (Bits::new(layout, Bitmap::full(layout), store, true), place, true),
        };
        // It was hashed just now, unless somebody may have written to it unseen meanwhile.
        let proven = matches!(&place, Place::Linked { state: LinkState::Whole(mark), .. }
            if mark.is_settled_by(since_ms));
        if proven {
            bits.verified = Bitmap::full(layout);
        }

        let record = Record {
            size: layout.size(),
            kind: new.kind,
            published: names.iter().any(|name: &NameRecord| name.published),
            place,
            names,
            added_ms: since_ms,
            complete: whole,
            withdrawn: false,
        };
        let have = bits.have.count();
        let file = LibraryFile::new(Arc::clone(&self), manifest, new.kind, bits);
        let mut batch = Batch::new();
        layout::put_hashes(&mut batch, &id, file.manifest().hashes());
        {
            let mut state = self.state.lock();
            let mut slot = Slot::new(record, false, have);
            slot.file = Arc::downgrade(&file);
            slot.proven = proven;
            state.insert(id, slot);
            if let Some(name) = new.name {
                state.add_name(&id, name, false);
            }
            if let Some(collection) = new.member_of {
                state.members.insert((id, collection));
            }
            // A small file is stored along with its content; one with hashes, without content, or that is there already, at once.
            if whole || !batch.is_empty() || layout.count() == 0 {
                state.put_record(&mut batch, &id);
            }
        }
        if !batch.is_empty() {
            if let Err(error) = self.commit_in_parts(batch, Durability::Buffered).await {
                self.state.lock().remove(&id);
                file.retire_from();
                return Err(error);
            }
            if let Some(slot) = self.state.lock().slots.get_mut(&id) {
                slot.stored = true;
            }
        }
        // Who begins at the same time wants to know of it now, not after the first piece.
        if !whole && layout.count() > 1 {
            self.tell(LibraryEvent::Added(id));
        }
        if whole {
            self.mark_dirty(&file, 0);
            self.tell(LibraryEvent::Added(id));
            self.tell(LibraryEvent::Completed(id));
        }
        Ok(file)
    }

    /// Gives a file a further name and collection. The caller holds the lock of the id.
    async fn adopt(
        &self,
        id: &FileId,
        name: Option<Name>,
        collection: Option<FileId>,
    ) -> Result<(), LibraryError> {
        {
            let mut state = self.state.lock();
            let mut changed = false;
            if let Some(name) = name {
                changed |= state.add_name(id, name, false);
            }
            if let Some(collection) = collection {
                changed |= state.members.insert((*id, collection));
            }
            if !changed {
                return Ok(());
            }
            if let Some(slot) = state.slots.get_mut(id) {
                slot.stored = false;
            }
        }
        self.store_record(id, Durability::Buffered).await
    }

    /// Takes away what is there of a file that begins anew. The caller holds the lock of the id.
    async fn reset(&self, id: &FileId, old: &Record) -> Result<(), LibraryError> {
        let mut batch = Batch::new();
        layout::delete_records(&mut batch, id, old.layout()?);
        self.index.commit(batch, Durability::Buffered).await?;
        let file = self.state.lock().remove(id).and_then(|slot| slot.file.upgrade());
        if let Some(file) = file {
            file.retire_from();
        }
        self.remove_content(id, old).await
    }
}

impl State {
    /// Gives a file a name; says whether that changed anything. A name that is published is the newest afterwards.
    pub(super) fn add_name(&mut self, id: &FileId, name: Name, published: bool) -> bool {
        let number = self.last_number + 1;
        let Some(slot) = self.slots.get_mut(id) else { return false };
        let names = &mut slot.record.names;
        let mut was_published = false;
        if let Some(at) = names.iter().position(|known| known.name == name) {
            if !published {
                return false;
            }
            was_published = names[at].published;
            let old = names.remove(at);
            if let Some(holders) = self.names.get_mut(&name) {
                holders.remove(&(old.number, *id));
            }
        }
        let published = published || was_published;
        names.push(NameRecord { name: name.clone(), number, published });
        let surplus = (names.len() > MAX_NAMES).then(|| names.remove(0));
        slot.stored = false;
        slot.record.published |= published;
        self.last_number = number;
        self.names.entry(name).or_default().insert((number, *id));
        if let Some(gone) = surplus
            && let Some(holders) = self.names.get_mut(&gone.name)
        {
            holders.remove(&(gone.number, *id));
            if holders.is_empty() {
                self.names.remove(&gone.name);
            }
        }
        true
    }
}

/// Looks at what is at a destination.
async fn look(manifest: Arc<Manifest>, destination: Destination) -> Result<Found, LibraryError> {
    layout::blocking(move || {
        let Some(target) = Target::resolve(destination)? else { return Ok(Found::Library) };
        if let Some((file, metadata)) = target.open_existing()? {
            if let Some(mark) = whole_file(&manifest, &file, &metadata) {
                return Ok(Found::Whole(target, mark));
            }
            if !target.force {
                return Err(LibraryError::Exists { path: target.path() });
            }
        }
        Ok(Found::Free(target))
    })
    .await
}

/// Begins the part file; `None` where the library's own store is to be used. Blocks.
fn begin(id: FileId, found: Found) -> Result<Option<Begun>, LibraryError> {
    match found {
        Found::Library => Ok(None),
        Found::Whole(target, mark) => {
            let place = Place::linked(target.root(), target.rel(), LinkState::Whole(mark));
            let linked = LinkedFile::new(id, target.path(), mark, None);
            Ok(Some(Begun::Whole(Store::Linked(Arc::new(linked)), place)))
        }
        Found::Free(target) => {
            let (file, inode) = target.create_part()?;
            let state = LinkState::Part { inode, executable: target.executable, force: target.force };
            let place = Place::linked(target.root(), target.rel(), state);
            Ok(Some(Begun::Empty(Store::Part(Arc::new(PartFile { file, target })), place)))
        }
    }
}

/// Reads a file and says what it looks like if it is the one of the manifest, and did not change meanwhile. Blocks.
pub(super) fn whole_file(
    manifest: &Manifest,
    file: &std::fs::File,
    metadata: &std::fs::Metadata,
) -> Option<Fingerprint> {
    use std::os::unix::fs::FileExt;
    let layout = manifest.layout();
    let mark = Fingerprint::of(metadata);
    if metadata.len() != layout.size() {
        return None;
    }
    let mut buffer =
        vec![0; layout.piece_size().min(u32::try_from(layout.size()).unwrap_or(u32::MAX)) as usize];
    for piece in layout.pieces() {
        let content = &mut buffer[..layout.len(piece)];
        file.read_exact_at(content, layout.offset(piece)).ok()?;
        if !manifest.piece_is(piece, content) {
            return None;
        }
    }
    (layout.count() > 0 || *manifest == Manifest::from_hashes(layout, Vec::new()).ok()?).then_some(())?;
    (Fingerprint::of(&file.metadata().ok()?) == mark).then_some(mark)
}
