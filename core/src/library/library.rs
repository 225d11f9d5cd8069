//! The library as a whole: what is in it, and the work in the background that makes it durable.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::task::TaskTracker;

use super::content::ContentStore;
use super::entry::{Entry, LibraryEvent, NewFile, VerifyReport};
use super::error::LibraryError;
use super::file::LibraryFile;
use super::output::{Destination, OutputDir};
use super::settings::LibrarySettings;
use super::shared::Shared;
use super::{formats, layout, recover};
use crate::model::collection::{Collection, MemberPath};
use crate::model::id::FileId;
use crate::model::manifest::Manifest;
use crate::model::name::Name;
use crate::model::record::{Offer, Publication};
use crate::storage::Storage;

/// The most matches of a prefix that are listed.
const MAX_MATCHES: usize = 16;
/// How long what was written may wait for its sync when little is written.
const FLUSH_PAUSE: Duration = Duration::from_secs(1);
/// The pause grows up to this while the disk does not take it.
const LONGEST_FLUSH_PAUSE: Duration = Duration::from_secs(10);

/// The files that a peer has.
///
/// Opened within a tokio runtime. Dropped without [`Library::close`] it is as after a crash: nothing is lost, but
/// the next start hashes what was not synced.
#[derive(Debug)]
pub struct Library {
    pub(crate) shared: Arc<Shared>,
    pub(super) tasks: TaskTracker,
}

impl Library {
    /// Opens the library and mends what a crash left: removals are finished, pieces that were written but not
    /// synced are hashed. What belongs to no file is swept in the background.
    pub async fn open(
        index: Arc<dyn Storage>,
        content: ContentStore,
        settings: LibrarySettings,
    ) -> Result<Arc<Self>, LibraryError> {
        if let ContentStore::Files(dir) = &content {
            let dir = dir.clone();
            layout::blocking(move || {
                std::fs::create_dir_all(&dir)
                    .map_err(|error| LibraryError::io("create the folder", &dir, error))
            })
            .await?;
        }
        formats::prepare(&*index).await?;
        let state = recover::load(&*index).await?;
        let shared = Arc::new(Shared::new(index, content, settings, state));
        let library = Arc::new(Self { shared: Arc::clone(&shared), tasks: TaskTracker::new() });
        shared.recover().await?;
        library.tasks.spawn(flush(Arc::clone(&shared)));
        let holding = Arc::clone(&shared);
        library.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = holding.stop.cancelled() => {}
                () = holding.recent.let_go_of_the_unused() => {}
            }
        });
        library.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => {}
                swept = shared.sweep() => if let Err(error) = swept {
                    tracing::warn!(%error, "content that belongs to no file was not swept");
                }
            }
        });
        library.tasks.close();
        Ok(library)
    }

    /// Makes everything durable and ends the background work. The storages stay open. A second call is `Ok`.
    pub async fn close(&self) -> Result<(), LibraryError> {
        let result = match self.shared.stop.is_cancelled() {
            true => Ok(()),
            false => self.shared.checkpoint(None).await,
        };
        self.shared.stop.cancel();
        self.tasks.wait().await;
        self.shared.dirty.lock().clear();
        self.shared.recent.clear();
        result
    }

    /// As [`Self::close`], but without waiting for the disk where little is lost by it: as after a crash of the
    /// process, the next start hashes what was not synced. What the last process left so is synced.
    pub async fn leave(&self) -> Result<(), LibraryError> {
        if !self.shared.owes_sync.load(Ordering::Relaxed) {
            self.shared.stop.cancel();
        }
        self.close().await
    }

    /// Every file of the library, by id.
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.state.lock().slots.iter().map(|(id, slot)| slot.entry(*id)).collect()
    }

    /// What is known of a file.
    pub fn entry(&self, id: &FileId) -> Option<Entry> {
        self.shared.state.lock().slots.get(id).map(|slot| slot.entry(*id))
    }

    /// Under which id others look for who has the file: its own, or that of a collection that it belongs to where it has
    /// no name.
    pub fn announced_as(&self, id: &FileId) -> Option<FileId> {
        let state = self.shared.state.lock();
        let slot = state.slots.get(id)?;
        if slot.record.names.is_empty() { state.collections_of(id).next() } else { Some(*id) }
    }

    /// The newest file of a name, or the file of an id or of a prefix of 8 or more hexadecimal digits.
    pub fn find(&self, query: &str) -> Result<Entry, LibraryError> {
        let state = self.shared.state.lock();
        let entry = |id: &FileId| state.slots.get(id).map(|slot| slot.entry(*id));
        let hexadecimal = query.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hexadecimal && (8..=64).contains(&query.len()) {
            let prefix = query.to_ascii_lowercase();
            // The first id with the prefix: the rest of it is zeros.
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
        let newest = state.names.get(&name).and_then(|holders| holders.last());
        newest.and_then(|(_, id)| entry(id)).ok_or_else(|| LibraryError::not_found(query))
    }

    /// The files that this peer offers: those with a name of which something is here. The members of a collection
    /// are not among them: who offers the collection offers them too.
    pub fn offers(&self) -> Vec<Offer> {
        self.offers_after(None, usize::MAX)
    }

    /// A page of these, ascending by id: those behind `after`, at most `limit`.
    pub fn offers_after(&self, after: Option<FileId>, limit: usize) -> Vec<Offer> {
        let state = self.shared.state.lock();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let offered = state.slots.range((start, Bound::Unbounded)).filter_map(|(id, slot)| slot.offer(*id));
        offered.take(limit).collect()
    }

    /// Tells of every change from now on, but not of what is only a member of a collection and was published with
    /// it or came in a batch. A receiver that falls behind gets `Lagged` and asks for [`Self::offers`].
    pub fn events(&self) -> broadcast::Receiver<LibraryEvent> {
        self.shared.events.subscribe()
    }

    /// The file, to read or go on writing it; `None` where the library does not know it or it was withdrawn.
    /// Everybody who has it open shares it.
    pub async fn open_file(&self, id: &FileId) -> Result<Option<Arc<LibraryFile>>, LibraryError> {
        let (shared, id) = (Arc::clone(&self.shared), *id);
        layout::finished(tokio::spawn(async move { shared.open_file(&id).await })).await
    }

    /// As [`Self::open_file`], for somebody who asks again and again: the file is held open for a while, and whether a
    /// linked one is still there shows when it is read.
    pub async fn open_recent(&self, id: &FileId) -> Result<Option<Arc<LibraryFile>>, LibraryError> {
        self.shared.check_open()?;
        let file = match self.shared.already_open(id) {
            Some(open) => Some(open),
            None => self.open_file(id).await?,
        };
        if let Some(file) = &file {
            self.shared.hold_open(file);
        }
        Ok(file)
    }

    /// Begins a file, or goes on with one that is there in part or in whole (then `destination` is not used,
    /// see [`LibraryFile::location`], and [`Self::export`] makes a further copy). Its name and collection are
    /// added to it in any case. A destination that holds the content already is taken as it is.
    ///
    /// # Errors
    /// [`LibraryError::Exists`] where a destination holds other content and `force` is not given;
    /// [`LibraryError::WrongSize`] where the manifest claims another size than the one that is proven.
    pub async fn create(
        &self,
        manifest: Manifest,
        new: NewFile,
        destination: Destination,
    ) -> Result<Arc<LibraryFile>, LibraryError> {
        let shared = Arc::clone(&self.shared);
        layout::finished(tokio::spawn(shared.create(manifest, new, destination))).await
    }

    /// Makes everything that was written so far durable, with few syncs for many files.
    pub async fn checkpoint_all(&self) -> Result<(), LibraryError> {
        self.shared.checkpoint(None).await
    }

    /// The list of a collection that is here in whole.
    pub async fn collection(&self, id: &FileId) -> Result<Collection, LibraryError> {
        self.shared.collection(id).await
    }

    /// Removes a file, and with a collection those of its members that have no name and belong to no other. A file
    /// with a name that a collection needs stays for its sake and only loses its names.
    /// A linked file stays on the disk. When this returns an error the removal may be finished at the next start.
    pub async fn remove(&self, id: &FileId) -> Result<(), LibraryError> {
        let shared = Arc::clone(&self.shared);
        layout::finished(tokio::spawn(shared.remove(*id))).await
    }

    /// Writes a complete file, or the directory of a collection, to a path. Every piece is verified on the way.
    /// What is there already with the same content stays.
    pub async fn export(&self, id: &FileId, path: &Path, force: bool) -> Result<(), LibraryError> {
        self.shared.export(id, path, force).await
    }

    /// Writes a complete file to a path beneath a directory, as [`Self::export`], but leaves the sync to the caller.
    pub async fn export_member(
        &self,
        id: &FileId,
        dir: &Arc<OutputDir>,
        path: &MemberPath,
        executable: bool,
        force: bool,
    ) -> Result<(), LibraryError> {
        let dir = Arc::clone(dir);
        let destination = Destination::Member { dir, path: path.clone(), executable, force };
        self.shared.export_to(id, destination, false).await
    }

    /// Reads and hashes every piece that is here. Pieces that are wrong are no longer claimed; a linked file that
    /// was withdrawn and is right again is offered again.
    ///
    /// # Errors
    /// [`LibraryError::Changed`] where a linked file is not the one that it was; it is withdrawn.
    pub async fn verify(&self, id: &FileId) -> Result<VerifyReport, LibraryError> {
        self.shared.verify(id).await
    }

    /// The published names that this catalogue has not acknowledged, the oldest first.
    pub fn pending_publications(&self, catalogue: [u8; 16]) -> Vec<Publication> {
        self.shared.pending_publications(catalogue)
    }

    /// Notes that a catalogue has this name of this file.
    pub async fn mark_published(
        &self,
        catalogue: [u8; 16],
        id: &FileId,
        name: &Name,
    ) -> Result<(), LibraryError> {
        self.shared.mark_published(catalogue, id, name).await
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        // Files that wait for a sync hold on to what they share with the library.
        let waiting = std::mem::take(&mut *self.shared.dirty.lock());
        drop(waiting);
        self.shared.recent.clear();
    }
}

/// Makes durable what was written, soon after the first write or when enough is waiting.
async fn flush(shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.flush_some_time.notified() => {}
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.flush_now.notified() => {}
            () = tokio::time::sleep(FLUSH_PAUSE) => {}
        }
        let Err(error) = shared.checkpoint(None).await else {
            if failures > 0 {
                tracing::info!("what was written is durable again");
            }
            failures = 0;
            continue;
        };
        if matches!(error, LibraryError::Closed) && shared.stop.is_cancelled() {
            return;
        }
        if failures == 0 {
            tracing::warn!(%error, "what was written could not be made durable; it is tried again and again");
        } else {
            tracing::debug!(%error, failures, "what was written could not be made durable");
        }
        failures += 1;
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep((FLUSH_PAUSE * failures).min(LONGEST_FLUSH_PAUSE)) => {}
        }
        shared.flush_some_time.notify_one();
    }
}
