//! Linked files whose metadata changed or that disappeared.
//!
//! Changed metadata does not prove changed content: `chmod`, a new hard link or a rename alters it as well. Such
//! a file stays offered; each of its pieces is hashed again when it is next read, and the whole file in the
//! background. A file that disappeared is read at another path with the same content. If there is none, it is
//! withdrawn, searched again with increasing delays, and offered again when its content is back.

use std::iter::once;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::time::{Instant, sleep, sleep_until};

use super::entry::{LibraryEvent, WithdrawReason};
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::FileStore;
use super::inner::LibraryInner;
use super::layout::{ContentPlace, Record};
use super::linked::{Content, Fingerprint, LinkedFile, check_content, open_regular};
use super::load::load_manifest;
use super::open_files::OpenFiles;
use super::task::blocking;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{Bitmap, Durability, FileId};

/// Bounds of the delay between two searches for withdrawn files.
const MIN_DELAY: Duration = Duration::from_secs(2);
const MAX_DELAY: Duration = Duration::from_secs(5 * 60);
/// The time from the start, and the interval, at which all linked files are checked for changes. The others are
/// checked when they are read.
const FIRST_SWEEP: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// The number of files of the index that are examined at once.
const PAGE: usize = 1024;
/// The largest number of versions of one file that are remembered as invalid.
const MAX_REFUTED: usize = 64;

/// A complete linked file, and the versions whose content is known to be invalid.
#[derive(Debug)]
struct Candidate {
    id: FileId,
    record: Record,
    refuted: Vec<Fingerprint>,
}

impl Candidate {
    /// Finds a regular file of the right size at the paths of the record. Prefers unchanged metadata, then the
    /// order of the paths. The result has the current fingerprint. Blocks.
    fn locate(&self) -> Result<ContentPlace, WithdrawReason> {
        let (mut changed, mut reason) = (None, None);
        for place in once(&self.record.place).chain(&self.record.copies) {
            let (Some(path), Some(known)) = (place.path(), place.fingerprint()) else { continue };
            match self.version_at(&path, known) {
                Ok(found) if found == *known => return Ok(place.clone()),
                Ok(found) => {
                    changed.get_or_insert_with(|| place.with_fingerprint(found));
                }
                Err(found) => {
                    reason.get_or_insert(found);
                }
            }
        }
        changed.ok_or(reason.unwrap_or(WithdrawReason::Missing))
    }

    fn version_at(&self, path: &Path, known: &Fingerprint) -> Result<Fingerprint, WithdrawReason> {
        let metadata = std::fs::metadata(path).map_err(|error| WithdrawReason::of(&error))?;
        let found = Fingerprint::of(&metadata);
        if !metadata.is_file() || metadata.len() != self.record.size || self.refuted.contains(&found) {
            return Err(WithdrawReason::Changed);
        }
        if found != *known && open_regular(path, OFlags::empty()).is_err() {
            return Err(WithdrawReason::Unreadable);
        }
        Ok(found)
    }

    /// Whether the place is one of the record with unchanged metadata.
    fn is_recorded(&self, place: &ContentPlace) -> bool {
        once(&self.record.place).chain(&self.record.copies).any(|known| known == place)
    }

    /// Whether the place of a withdrawn file may have other content, so that it has to be hashed.
    fn is_unproven(&self, place: &ContentPlace) -> bool {
        self.record.withdrawn == Some(WithdrawReason::Changed) || !self.is_recorded(place)
    }
}

impl LibraryInner {
    fn candidate(&self, id: &FileId) -> Option<Candidate> {
        let state = self.state.lock();
        let slot = state.slots.get(id)?;
        Some(Candidate { id: *id, record: slot.record.clone(), refuted: slot.refuted.clone() })
    }

    /// Returns a page of the complete linked files after `last`, and the end of the page.
    fn candidates(&self, last: &mut Option<FileId>, withdrawn: bool) -> Option<Vec<Candidate>> {
        let state = self.state.lock();
        let start = last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Vec::new();
        let before = *last;
        for (id, slot) in state.slots.range((start, Bound::Unbounded)).take(PAGE) {
            *last = Some(*id);
            let record = &slot.record;
            let wanted = record.complete && record.withdrawn.is_some() == withdrawn;
            if wanted && record.place.fingerprint().is_some() {
                let (record, refuted) = (record.clone(), slot.refuted.clone());
                page.push(Candidate { id: *id, record, refuted });
            }
        }
        (*last != before).then_some(page)
    }

    /// Adds a file to those that are hashed in the background.
    pub(super) fn add_suspect(&self, id: &FileId) {
        self.state.lock().suspects.insert(*id);
        self.suspect_added.notify_one();
    }

    fn next_suspect(&self) -> Option<FileId> {
        self.state.lock().suspects.pop_first()
    }

    /// Remembers that a version of a linked file has other content.
    fn refute(&self, id: &FileId, fingerprint: Fingerprint) {
        if let Some(slot) = self.state.lock().slots.get_mut(id) {
            if slot.refuted.len() >= MAX_REFUTED {
                slot.refuted.remove(0);
            }
            slot.refuted.push(fingerprint);
        }
    }

    /// Records another file of the user with the content of a linked file.
    pub(super) async fn add_copy(&self, id: &FileId, copy: ContentPlace) -> Result<()> {
        let _guard = self.lock(id).await;
        {
            let mut state = self.state.lock();
            let slot = state.slots.get_mut(id).filter(|slot| slot.record.place.fingerprint().is_some());
            let Some(slot) = slot else { return Ok(()) };
            slot.record.add_copy(copy);
            slot.stored = false;
        }
        self.store_record(id, Durability::Buffered).await
    }

    /// Changes the place of a linked file, which is then offered. `verified`: all of it was hashed. The caller
    /// holds the lock of the id.
    async fn set_place(&self, id: &FileId, place: ContentPlace, verified: bool) -> Result<()> {
        {
            let mut state = self.state.lock();
            let Some(mut slot) = state.remove(id) else { return Ok(()) };
            let old = std::mem::replace(&mut slot.record.place, place);
            slot.record.add_copy(old);
            slot.record.withdrawn = None;
            slot.verified = verified;
            slot.stored = false;
            state.insert(*id, slot);
        }
        self.store_record(id, Durability::Buffered).await
    }

    /// Finds the content of a linked file and makes the record refer to it. Without content returns the reason.
    /// The caller holds the lock of the id.
    pub(super) async fn relocate(&self, id: &FileId) -> Result<Result<Arc<LinkedFile>, WithdrawReason>> {
        let Some(candidate) = self.candidate(id) else { return Ok(Err(WithdrawReason::Missing)) };
        let (candidate, located) = blocking(move || {
            let located = candidate.locate();
            Ok((candidate, located))
        })
        .await?;
        let place = match located {
            Ok(place) => place,
            Err(reason) => return Ok(Err(reason)),
        };
        let (Some(path), Some(fingerprint)) = (place.path(), place.fingerprint().copied()) else {
            return Ok(Err(WithdrawReason::Missing));
        };
        if place != candidate.record.place {
            tracing::info!(%id, path = %path.display(), "linked file changed or moved; it stays offered");
            let is_suspect = !candidate.is_recorded(&place);
            self.set_place(id, place, false).await?;
            if is_suspect {
                self.add_suspect(id);
            }
        }
        Ok(Ok(Arc::new(LinkedFile::new(*id, path, fingerprint, None))))
    }

    /// Hashes the file at a place, in the version of the place.
    async fn hash_link(&self, id: &FileId, record: &Record, place: &ContentPlace) -> Result<Content> {
        let (Some(path), Some(fingerprint)) = (place.path(), place.fingerprint().copied()) else {
            return Ok(Content::Unknown);
        };
        let manifest = load_manifest(&*self.index, id, record.layout()?).await?;
        let stop = self.stop.clone();
        blocking(move || {
            let Ok((file, metadata)) = open_regular(&path, OFlags::empty()) else {
                return Ok(Content::Unknown);
            };
            if Fingerprint::of(&metadata) != fingerprint {
                return Ok(Content::Unknown);
            }
            let content = check_content(&manifest, &file, &metadata, &|| stop.is_cancelled());
            if stop.is_cancelled() { Err(LibraryError::Closed) } else { Ok(content) }
        })
        .await
    }
}

impl LibraryFile {
    /// Continues with the current version of a linked file, or at another path, after a read from `failed`
    /// failed or returned `invalid` content. Without valid content withdraws the file and returns false.
    pub(super) async fn relink(&self, failed: &LinkedFile, invalid: bool) -> Result<bool> {
        let id = self.id();
        let _guard = self.inner.lock(&id).await;
        self.relink_locked(failed, invalid).await
    }

    /// Same as [`Self::relink`]. The caller holds the lock of the id.
    pub(super) async fn relink_locked(&self, failed: &LinkedFile, invalid: bool) -> Result<bool> {
        let id = self.id();
        self.inner.check_open()?;
        if self.is_retired() {
            return Ok(false);
        }
        if !matches!(&self.state.lock().store, FileStore::Linked(current) if std::ptr::eq(&**current, failed))
        {
            // Another reader was faster.
            return Ok(true);
        }
        if invalid {
            self.inner.refute(&id, failed.fingerprint);
        }
        match self.inner.relocate(&id).await? {
            Ok(linked) => {
                let mut state = self.state.lock();
                state.store = FileStore::Linked(linked);
                state.verified = Bitmap::empty(self.layout());
                Ok(true)
            }
            Err(reason) => {
                self.retire();
                self.inner.withdraw(&id, reason).await?;
                Ok(false)
            }
        }
    }
}

impl OpenFiles {
    /// Searches for changed and withdrawn files, and hashes those that it finds, until the library is closed.
    pub(super) async fn watch_links(self: Arc<Self>) {
        tokio::join!(self.search_links(), self.hash_suspects());
    }

    async fn search_links(self: &Arc<Self>) {
        let mut backoff = Backoff::new(MIN_DELAY, MAX_DELAY);
        let mut sweep_at = Instant::now() + FIRST_SWEEP;
        loop {
            if Instant::now() >= sweep_at {
                sweep_at = Instant::now() + SWEEP_INTERVAL;
                self.find_changed().await;
            }
            let missing = self.find_withdrawn().await;
            let retry_at = Instant::now() + if missing { backoff.next_delay() } else { SWEEP_INTERVAL };
            tokio::select! {
                () = self.inner.link_withdrawn.notified() => backoff.reset(),
                () = sleep_until(sweep_at.min(retry_at)) => {}
            }
        }
    }

    async fn hash_suspects(self: &Arc<Self>) {
        let mut backoff = Backoff::new(MIN_DELAY, MAX_DELAY);
        loop {
            let mut failed = Vec::new();
            while let Some(id) = self.inner.next_suspect() {
                if let Err(error) = self.check_suspect(&id).await {
                    log_failure(&id, &error);
                    failed.push(id);
                }
            }
            let delay = if failed.is_empty() { MAX_DELAY } else { backoff.next_delay() };
            self.inner.state.lock().suspects.extend(failed);
            tokio::select! {
                () = self.inner.suspect_added.notified() => backoff.reset(),
                () = sleep(delay) => {}
            }
        }
    }

    /// Hashes a file whose metadata changed, or a withdrawn file that was found.
    async fn check_suspect(self: &Arc<Self>, id: &FileId) -> Result<()> {
        let Some(candidate) = self.inner.candidate(id) else { return Ok(()) };
        if candidate.record.withdrawn.is_some() {
            return self.find_content(candidate).await;
        }
        let record = candidate.record;
        let verified = self.inner.state.lock().slots.get(id).is_some_and(|slot| slot.verified);
        let Some(fingerprint) = record.place.fingerprint().copied().filter(|_| !verified) else {
            return Ok(());
        };
        let since = SystemClock.now();
        let content = self.inner.hash_link(id, &record, &record.place).await?;
        if content != Content::Valid {
            return self.reject_link(id, fingerprint, content == Content::Invalid).await;
        }
        if let Some(slot) = self.inner.state.lock().slots.get_mut(id)
            && slot.record.place == record.place
        {
            slot.verified |= fingerprint.is_settled_by(since);
        }
        Ok(())
    }

    /// Continues with the current version of a linked file, or at another path, after a version could not be read or is
    /// `invalid`.
    async fn reject_link(&self, id: &FileId, fingerprint: Fingerprint, invalid: bool) -> Result<()> {
        let _guard = self.inner.lock(id).await;
        if let Some(file) = self.get(id) {
            let store = file.state.lock().store.clone();
            if let FileStore::Linked(linked) = store
                && linked.fingerprint == fingerprint
            {
                file.relink_locked(&linked, invalid).await?;
            }
            return Ok(());
        }
        if invalid {
            self.inner.refute(id, fingerprint);
        }
        if let Err(reason) = self.inner.relocate(id).await? {
            self.inner.withdraw(id, reason).await?;
        }
        Ok(())
    }

    /// Finds offered files that changed or disappeared.
    async fn find_changed(self: &Arc<Self>) {
        let mut last = None;
        while let Some(page) = self.inner.candidates(&mut last, false) {
            let is_changed =
                |candidate: &Candidate| candidate.locate().as_ref() != Ok(&candidate.record.place);
            let changed = blocking(move || Ok(page.into_iter().filter(is_changed).collect::<Vec<_>>())).await;
            for Candidate { id, .. } in changed.unwrap_or_default() {
                // Continues with another version, or withdraws the file.
                if let Err(error) = self.open(&id).await {
                    log_failure(&id, &error);
                }
            }
        }
    }

    /// Offers withdrawn files again whose content is back. Returns whether there are others.
    async fn find_withdrawn(&self) -> bool {
        let (mut last, mut missing) = (None, false);
        while let Some(page) = self.inner.candidates(&mut last, true) {
            if page.is_empty() {
                continue;
            }
            let located = blocking(move || {
                let locate = |candidate: Candidate| (candidate.locate(), candidate);
                Ok(page.into_iter().map(locate).collect::<Vec<_>>())
            })
            .await;
            for (place, candidate) in located.unwrap_or_default() {
                missing |= match place {
                    // Hashing may take long, and others may be back as well.
                    Ok(place) if candidate.is_unproven(&place) => {
                        self.inner.add_suspect(&candidate.id);
                        true
                    }
                    Ok(place) => match self.offer_again(&candidate, place, false).await {
                        Ok(()) => false,
                        Err(error) => {
                            log_failure(&candidate.id, &error);
                            true
                        }
                    },
                    Err(reason) => {
                        if let Some(slot) = self.inner.state.lock().slots.get_mut(&candidate.id)
                            && let Some(withdrawn) = &mut slot.record.withdrawn
                        {
                            *withdrawn = reason;
                        }
                        true
                    }
                };
            }
        }
        missing
    }

    /// Hashes a withdrawn file that was found at a place, and offers it again if its content is valid.
    async fn hash_and_offer(&self, candidate: &Candidate, place: ContentPlace) -> Result<()> {
        let since = SystemClock.now();
        let content = self.inner.hash_link(&candidate.id, &candidate.record, &place).await?;
        match (content, place.fingerprint().copied()) {
            (Content::Valid, Some(fingerprint)) => {
                self.offer_again(candidate, place, fingerprint.is_settled_by(since)).await?;
            }
            (Content::Invalid, Some(fingerprint)) => self.inner.refute(&candidate.id, fingerprint),
            _ => {}
        }
        Ok(())
    }

    /// Offers a withdrawn file again that was found at a place. `verified`: all of it was hashed.
    async fn offer_again(&self, candidate: &Candidate, place: ContentPlace, verified: bool) -> Result<()> {
        let Candidate { id, record, .. } = candidate;
        let inner = &self.inner;
        let _guard = inner.lock(id).await;
        let pieces = record.layout()?.count();
        match inner.state.lock().slots.get_mut(id) {
            Some(slot) if slot.record.place == record.place && slot.record.withdrawn.is_some() => {
                slot.have = pieces;
            }
            // Removed, or downloaded again.
            _ => return Ok(()),
        }
        let path = place.path();
        let path = path.as_deref().map(|path| path.display().to_string());
        tracing::info!(%id, path, "withdrawn file found; it is offered again");
        inner.set_place(id, place, verified).await?;
        inner.notify(LibraryEvent::Added(*id));
        inner.notify(LibraryEvent::Completed(*id));
        Ok(())
    }

    /// Searches for the content of a withdrawn file now, also in versions that were invalid, and offers it again if it is
    /// valid.
    pub(super) async fn restore_now(&self, id: &FileId) -> Result<()> {
        if let Some(slot) = self.inner.state.lock().slots.get_mut(id) {
            slot.refuted.clear();
        }
        match self.inner.candidate(id) {
            Some(candidate) => self.find_content(candidate).await,
            None => Ok(()),
        }
    }

    /// Searches for the content of a withdrawn file, and offers it again if it is valid.
    async fn find_content(&self, candidate: Candidate) -> Result<()> {
        let (candidate, place) = blocking(move || {
            let place = candidate.locate();
            Ok((candidate, place))
        })
        .await?;
        match place {
            Ok(place) if candidate.is_unproven(&place) => self.hash_and_offer(&candidate, place).await,
            Ok(place) => self.offer_again(&candidate, place, false).await,
            Err(_) => Ok(()),
        }
    }
}

fn log_failure(id: &FileId, error: &LibraryError) {
    if !matches!(error, LibraryError::Closed) {
        tracing::warn!(%id, %error, "check of a linked file failed; will retry");
    }
}
