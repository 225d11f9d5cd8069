//! The library: lookups, and the entry points to all operations.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::broadcast;
use tokio_util::task::TaskTracker;

use super::content::ContentStore;
use super::entry::{Entry, LibraryEvent, NewFile, PublishedVersion, Totals};
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::inner::{BATCH_WRITES, LibraryInner};
use super::layout::{self, ACKS, Ack, AckKey};
use super::load::{check_or_write_format, load_state};
use super::missing_content::is_content_missing;
use super::open_files::OpenFiles;
use super::output::Destination;
use super::state::Slot;
use super::task::in_task;
use enjambre_core::model::id::is_id_or_prefix;
use enjambre_core::runtime;
use enjambre_core::{
    Batch, CatalogueId, Durability, FileId, Manifest, Name, Offer, Publication, Storage, UnixMillis,
};

/// The number of files that are visited without releasing the lock of the state.
const VISITED_AT_ONCE: usize = 4096;
/// The largest number of matches of an ambiguous prefix.
const MAX_MATCHES: usize = 16;

/// The files of a peer.
///
/// Has to be opened within a tokio runtime. Dropping it without [`Library::close`] is like a crash: nothing
/// is lost, but the next start hashes unsynced pieces.
#[derive(Debug)]
pub struct Library {
    pub(crate) inner: Arc<LibraryInner>,
    pub(super) files: Arc<OpenFiles>,
    pub(super) tasks: TaskTracker,
}

impl Library {
    /// Opens the library and recovers from a crash: finishes removals and hashes unsynced pieces. Content
    /// without a file is swept in the background.
    ///
    /// # Errors
    /// [`LibraryError::ContentMissing`] if the content store is empty although the index lists content in it.
    /// [`drop_content_claims`](super::drop_content_claims) corrects the index then.
    pub async fn open(index: Arc<dyn Storage>, content: ContentStore) -> Result<Arc<Self>> {
        check_or_write_format(&*index).await?;
        let state = load_state(&*index).await?;
        // Before the recovery, which changes the index and creates files.
        if is_content_missing(&state, &content).await? {
            return Err(LibraryError::ContentMissing);
        }
        content.create().await?;
        let inner = Arc::new(LibraryInner::new(index, content, state));
        let files = Arc::new(OpenFiles::new(Arc::clone(&inner)));
        let library = Arc::new(Self {
            inner: Arc::clone(&inner),
            files: Arc::clone(&files),
            tasks: TaskTracker::new(),
        });
        files.recover().await?;
        runtime::spawn_in(&library.tasks, Arc::clone(&inner).run_checkpoints());
        let watching = Arc::clone(&files).watch_links();
        runtime::spawn_in(&library.tasks, inner.stop.clone().run_until_cancelled_owned(watching));
        let caching = Arc::clone(&inner);
        runtime::spawn_in(&library.tasks, async move {
            caching.stop.run_until_cancelled(caching.cache.close_idle_files()).await;
        });
        runtime::spawn_in(&library.tasks, async move {
            if let Some(Err(error)) = inner.stop.run_until_cancelled(inner.sweep()).await {
                tracing::warn!(%error, "content sweep failed");
            }
        });
        library.tasks.close();
        Ok(library)
    }

    /// Makes everything durable and stops the background tasks. The storages stay open. A second call
    /// succeeds.
    pub async fn close(&self) -> Result<()> {
        let result = match self.inner.stop.is_cancelled() {
            true => Ok(()),
            false => self.inner.checkpoint(None).await,
        };
        self.inner.stop.cancel();
        self.tasks.wait().await;
        self.inner.dirty.lock().clear();
        self.inner.cache.clear();
        result
    }

    /// Same as [`Self::close`], but skips the sync if only this process left data unsynced: the next start
    /// hashes it, as after a crash.
    pub async fn close_without_sync(&self) -> Result<()> {
        if !self.inner.inherited_unsynced.load(Ordering::Relaxed) {
            self.inner.stop.cancel();
        }
        self.close().await
    }

    /// The database of the index.
    pub(crate) fn index(&self) -> &Arc<dyn Storage> {
        &self.inner.index
    }

    /// Lists all files in the order of their ids. Blocks for a moment if the library is large.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.visit(|id, slot| entries.push(slot.entry(id)));
        entries
    }

    /// Counts the files. Blocks for a moment if the library is large.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.visit(|id, slot| totals.add(id, slot));
        totals
    }

    /// Visits all files in the order of their ids. Other threads can use the state in between.
    fn visit(&self, mut visit: impl FnMut(FileId, &Slot)) {
        let mut start = Bound::Unbounded;
        loop {
            let state = self.inner.state.lock();
            let page = state.slots.range((start, Bound::Unbounded)).take(VISITED_AT_ONCE);
            let Some(last) = page.inspect(|(id, slot)| visit(**id, slot)).last() else { return };
            start = Bound::Excluded(*last.0);
        }
    }

    /// Returns a file, or `None` if the library does not contain it.
    pub fn entry(&self, id: &FileId) -> Option<Entry> {
        self.inner.state.lock().slots.get(id).map(|slot| slot.entry(*id))
    }

    /// Returns the ids under which the providers of a file are found: its own id if it has a name, and those of the
    /// collections that contain it.
    pub fn announced_as(&self, id: &FileId) -> Vec<FileId> {
        let state = self.inner.state.lock();
        let own = state.slots.get(id).filter(|slot| !slot.record.names.is_empty()).map(|_| *id);
        own.into_iter().chain(state.collections_of(id)).collect()
    }

    /// Finds a file by name, id, or a prefix of its id with at least 8 hexadecimal digits. Of several files
    /// with the name it returns the newest.
    pub fn find(&self, query: &str) -> Result<Entry> {
        let state = self.inner.state.lock();
        let entry = |id: &FileId| state.slots.get(id).map(|slot| slot.entry(*id));
        if is_id_or_prefix(query) {
            let prefix = query.to_ascii_lowercase();
            // The smallest id with the prefix.
            let first: FileId =
                format!("{prefix:0<64}").parse().map_err(|_| LibraryError::not_found(query))?;
            let matches: Vec<FileId> = state
                .slots
                .range(first..)
                .map(|(id, _)| *id)
                .take_while(|id| id.to_string().starts_with(&prefix))
                .take(MAX_MATCHES)
                .collect();
            return match matches.as_slice() {
                [] => Err(LibraryError::not_found(query)),
                [only] => entry(only).ok_or_else(|| LibraryError::not_found(query)),
                _ => Err(LibraryError::Ambiguous { query: query.to_owned(), matches }),
            };
        }
        let name: Name = query.parse().map_err(|_| LibraryError::not_found(query))?;
        let newest = state.names.get(&name).and_then(|files| files.last());
        newest.and_then(|(_, id)| entry(id)).ok_or_else(|| LibraryError::not_found(query))
    }

    /// Lists the offered files: those with a name and stored pieces. Members of a collection are not listed,
    /// since a provider of the collection also provides its members.
    pub fn offers(&self) -> Vec<Offer> {
        self.offers_after(None, usize::MAX)
    }

    /// Lists at most `limit` offered files with ids greater than `after`, in ascending order.
    pub fn offers_after(&self, after: Option<FileId>, limit: usize) -> Vec<Offer> {
        let state = self.inner.state.lock();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let offered = state.slots.range((start, Bound::Unbounded)).filter_map(|(id, slot)| slot.offer(*id));
        offered.take(limit).collect()
    }

    /// Subscribes to changes. Members of a collection that are published with it or stored in a batch cause
    /// no events. A receiver that falls behind gets `Lagged` and has to call [`Self::offers`].
    pub fn events(&self) -> broadcast::Receiver<LibraryEvent> {
        self.inner.events.subscribe()
    }

    /// Opens a file for reading and writing, or returns `None` if the library does not contain it or it is
    /// withdrawn. All callers share the open file.
    pub async fn open_file(&self, id: &FileId) -> Result<Option<Arc<LibraryFile>>> {
        self.files.spawn_open(id).await
    }

    /// Same as [`Self::open_file`], for repeated reads: the file stays open for a while. Changes to a linked
    /// file are detected when it is read.
    pub async fn open_cached(&self, id: &FileId) -> Result<Option<Arc<LibraryFile>>> {
        self.inner.check_open()?;
        let file = match self.files.get(id) {
            Some(open) => Some(open),
            None => self.files.spawn_open(id).await?,
        };
        if let Some(file) = &file {
            let cache = &self.inner.cache;
            cache.touch(*id, file.manifest().hashes().len(), Arc::clone(file) as _);
            // A removal, or closing the library, sets its flag first and then clears the cache.
            if file.is_retired() || self.inner.stop.is_cancelled() {
                cache.remove(id);
            }
        }
        Ok(file)
    }

    /// Creates a file, or opens the existing one and adds the name and the collection to it. The stored pieces of an
    /// incomplete file move to `destination`; a complete file stays, see [`LibraryFile::location`] and
    /// [`Self::export`]. If the destination already has the right content, the library links it, and pieces of a file that
    /// `force` replaces are used.
    ///
    /// # Errors
    /// [`LibraryError::Exists`] if the destination has other content and `force` is not set;
    /// [`LibraryError::WrongSize`] if the manifest contradicts the proven size.
    pub async fn create(
        &self,
        manifest: Manifest,
        new: NewFile,
        destination: Destination,
    ) -> Result<Arc<LibraryFile>> {
        in_task(Arc::clone(&self.files).create(manifest, new, destination)).await
    }

    /// Makes all writes so far durable, with few syncs for many files.
    pub async fn checkpoint_all(&self) -> Result<()> {
        self.inner.checkpoint(None).await
    }

    /// Removes a file, and with a collection those of its members that have no name and belong to no other
    /// collection. A file that belongs to a collection only loses its names. Linked files stay on the disk.
    /// After an error the next start may finish the removal.
    pub async fn remove(&self, id: &FileId) -> Result<()> {
        in_task(Arc::clone(&self.files).remove(*id)).await
    }

    /// Removes one name of a file, and the file with its last name as [`Self::remove`] does. Returns the newest of
    /// the other names.
    pub async fn remove_name(&self, id: &FileId, name: &Name) -> Result<Option<Name>> {
        in_task(Arc::clone(&self.files).remove_name(*id, name.clone())).await
    }

    /// Lists the published names that the catalogue has not acknowledged, the oldest first.
    pub fn pending_publications(&self, catalogue: CatalogueId) -> Vec<Publication> {
        let state = self.inner.state.lock();
        let mut pending = Vec::new();
        for (id, slot) in &state.slots {
            let record = &slot.record;
            if !record.published || !record.complete || record.withdrawn.is_some() {
                continue;
            }
            for name in record.names.iter().filter(|name| name.published) {
                if state.acks.get(&(catalogue, *id, name.name.clone())).is_none_or(Ack::is_lost) {
                    let publication = Publication {
                        name: name.name.clone(),
                        id: *id,
                        size: record.size,
                        kind: record.kind,
                    };
                    pending.push((name.number, publication));
                }
            }
        }
        // In the order of publication, so that the newest version of a name is also the newest in the
        // catalogue.
        pending.sort_by_key(|(number, _)| *number);
        pending.into_iter().map(|(_, publication)| publication).collect()
    }

    /// Records that the catalogue acknowledged the publication of a name at this time.
    pub async fn mark_published(
        &self,
        catalogue: CatalogueId,
        id: &FileId,
        name: &Name,
        version: PublishedVersion,
        at: UnixMillis,
    ) -> Result<()> {
        self.inner.check_open()?;
        let _guard = self.inner.lock(id).await;
        let known = {
            let state = self.inner.state.lock();
            state.slots.get(id).is_some_and(|slot| slot.record.names.iter().any(|known| known.name == *name))
        };
        if !known {
            return Ok(());
        }
        let ack = (catalogue, *id, name.clone());
        let mut batch = Batch::new();
        let PublishedVersion { version, new } = version;
        let acknowledged = Ack { at: at.max(UnixMillis(1)), version, new: Some(new) };
        batch.put(ACKS, layout::ack_key(&ack), layout::ack_value(&acknowledged));
        self.inner.index.commit(batch, Durability::Buffered).await?;
        self.inner.state.lock().acks.insert(ack, acknowledged);
        Ok(())
    }

    /// Returns the publications that the catalogue acknowledged at these times to its outbox, because it may have lost them.
    pub async fn forget_acknowledgements(
        &self,
        catalogue: CatalogueId,
        is_lost: impl Fn(UnixMillis) -> bool,
    ) -> Result<()> {
        self.inner.check_open()?;
        let lost: Vec<(AckKey, Ack)> = {
            let state = self.inner.state.lock();
            let lost = state.acks.iter().filter(|((of, ..), ack)| *of == catalogue && is_lost(ack.at));
            lost.map(|(key, ack)| (key.clone(), *ack)).collect()
        };
        for acks in lost.chunks(BATCH_WRITES) {
            let mut batch = Batch::new();
            for (key, ack) in acks {
                batch.put(ACKS, layout::ack_key(key), layout::ack_value(&ack.lost()));
            }
            self.inner.index.commit(batch, Durability::Buffered).await?;
            let mut state = self.inner.state.lock();
            for (key, ack) in acks {
                // It may have been removed meanwhile.
                state.acks.entry(key.clone()).and_modify(|known| *known = ack.lost());
            }
        }
        Ok(())
    }

    /// Returns the version with which the catalogue acknowledged a publication, also if it may have lost it since.
    pub fn acknowledged_version(&self, catalogue: CatalogueId, id: &FileId, name: &Name) -> Option<u64> {
        self.inner.state.lock().acks.get(&(catalogue, *id, name.clone())).map(|ack| ack.version)
    }

    /// Returns the version that the catalogue assigned to a name, if this process recorded it after the last
    /// publication of the name.
    pub fn published_version(
        &self,
        catalogue: CatalogueId,
        id: &FileId,
        name: &Name,
    ) -> Option<PublishedVersion> {
        let Ack { version, new, .. } = *self.inner.state.lock().acks.get(&(catalogue, *id, name.clone()))?;
        Some(PublishedVersion { version, new: new? })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        // Unsynced files refer to `inner`, which refers to them.
        let unsynced = std::mem::take(&mut *self.inner.dirty.lock());
        drop(unsynced);
        self.inner.cache.clear();
    }
}
