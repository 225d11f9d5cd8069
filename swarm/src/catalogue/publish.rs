//! Publication of files under names, names that only one peer may publish, and the removal of files.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::access::{ATTEMPTS, PAGE, require_same};
use super::catalogue::Catalogue;
use super::claims;
use super::error::CatalogueError;
use super::layout::{
    self, Claim, FILE_NAMES, FILES, FileEntry, FileNumber, PEERS, PROVIDERS, RESERVATIONS, ReservationRecord,
    VERSIONS, VersionRecord,
};
use super::names::Published;
use super::peers::Session;
use enjambre_core::{
    Batch, Durability, FileId, Key, KeyRange, Name, Offer, PeerId, PieceLayout, Publication, Space,
    StorageError, UnixMillis,
};

/// The number of retries of a publication with unknown outcome. Further retries would wait for a storage that does not recover
/// soon.
const RETRIES: u32 = 1;

/// The largest number of versions of a name that a database can lose and get back with their numbers. It bounds how far a
/// peer can advance the numbers.
const MAX_LOST_VERSIONS: u64 = 1000;

impl Catalogue {
    /// Publishes the file as the newest version of the name, durably, with the session's peer as a provider. If the file
    /// already is the newest version with the same size and kind, no version is added.
    ///
    /// Size and kind are claims that a tracker cannot verify. Each version has those of its publisher. The entry of the file
    /// keeps those of its first publisher while that peer offers the file, whatever other peers publish.
    pub async fn publish(
        &self,
        session: &Session,
        publication: &Publication,
        now: UnixMillis,
    ) -> Result<Published, CatalogueError> {
        self.publish_or_repeat(session, publication, None, now).await
    }

    /// As [`Self::publish`]. `again` is the version of an earlier publication that is repeated, because the database may have
    /// lost it. If the name has this or a higher version with the file, it stays as it is. Otherwise the file gets this
    /// version, if it is free, so that the order of lost versions does not depend on who repeats them first.
    pub async fn publish_or_repeat(
        &self,
        session: &Session,
        publication: &Publication,
        again: Option<u64>,
        now: UnixMillis,
    ) -> Result<Published, CatalogueError> {
        let Publication { name, id, size, kind } = publication;
        let by = session.peer;
        PieceLayout::new(*size)?;
        // Most names are not reserved, so the reservation is read only after a conflict.
        let mut reservation = None;
        let mut retries = 0;
        for _ in 0..ATTEMPTS {
            if let Some(again) = again
                && let Some(version) = self.highest_version_of(name, id).await?
                && version >= again
            {
                self.announce(session, &[Offer { id: *id, size: *size, complete: true }], now).await?;
                return Ok(Published { version, new: false });
            }
            let newest = self.newest_version(name).await?;
            let file_key = layout::file_key(id);
            let mut batch = Batch::new();
            let (no, kept) = match self.read_record::<FileEntry>(FILES, &file_key).await? {
                Some((entry, raw)) => {
                    batch.require(FILES, file_key.clone(), raw);
                    (entry.no, self.contradicts(&entry, publication, by).await?.then_some(entry))
                }
                None => {
                    batch.require_absent(FILES, file_key.clone());
                    (FileNumber(self.next_number().await?), None)
                }
            };
            let (published, at, publisher) = match &newest {
                Some((version, record, raw))
                    if again.is_none() && (record.id, record.size, record.kind) == (*id, *size, *kind) =>
                {
                    // Conflicts with a concurrent expiry of the file.
                    batch.require(VERSIONS, layout::version_key(name, *version), raw.clone());
                    // A commit with unknown outcome added the version if all fields match.
                    let new = retries > 0 && record.by == by && record.at == now;
                    (Published { version: *version, new }, record.at, record.by)
                }
                _ if self.versions() >= self.rules.max_versions => return Err(CatalogueError::TooManyFiles),
                _ => {
                    let newest = newest.as_ref().map_or(0, |(version, ..)| *version);
                    let version = self.free_version(name, again, newest).await?;
                    let key = layout::version_key(name, version);
                    let record = VersionRecord { id: *id, size: *size, kind: *kind, at: now, by, no };
                    batch.require_absent(VERSIONS, key.clone());
                    batch.put(VERSIONS, key, layout::encode(&record));
                    batch.put(FILE_NAMES, layout::file_name_key(id, name, version), layout::MARK);
                    (Published { version, new: true }, now, by)
                }
            };
            let entry = match kept {
                Some(entry) => FileEntry { gone: None, ..entry },
                None => FileEntry {
                    name: name.clone(),
                    version: published.version,
                    size: *size,
                    kind: *kind,
                    at,
                    by: publisher,
                    no,
                    gone: None,
                },
            };
            batch.put(FILES, file_key, layout::encode(&entry));
            require_same(&mut batch, RESERVATIONS, layout::reservation_key(name), reservation.clone());
            let offering = self.require_offering_session(&mut batch, session, now).await?;
            claims::put_claim(&mut batch, session, no, Claim { size: *size, complete: true });
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => {
                    self.cache_offering(session, offering, now);
                    self.version_count.fetch_add(u64::from(published.new), Ordering::Relaxed);
                    self.name_changed(name);
                    self.file_changed(id);
                    return Ok(published);
                }
                Ok(false) => {
                    self.check_session(session).await?;
                    reservation = self.reservation_for(name, by).await?;
                }
                Err(StorageError::Indeterminate { source }) if retries < RETRIES => {
                    retries += 1;
                    tracing::warn!(error = %source, %name, "publication outcome unknown, retrying");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// The highest version of the name that this file is.
    async fn highest_version_of(&self, name: &Name, id: &FileId) -> Result<Option<u64>, StorageError> {
        let range = KeyRange::prefix(&layout::file_name_prefix(id, name));
        let Some((key, _)) = self.storage.scan(FILE_NAMES, range, 1).await?.into_iter().next() else {
            return Ok(None);
        };
        let version = layout::version_key_of_file_name(key.as_bytes())?;
        Ok(Some(layout::read_version_key(version.as_bytes())?.1))
    }

    /// Returns the wanted version if the name does not have it, otherwise the next one.
    async fn free_version(&self, name: &Name, wanted: Option<u64>, newest: u64) -> Result<u64, StorageError> {
        let possible = 1..=newest.saturating_add(MAX_LOST_VERSIONS);
        if let Some(wanted) = wanted.filter(|wanted| possible.contains(wanted))
            && self.read(VERSIONS, &layout::version_key(name, wanted)).await?.is_none()
        {
            return Ok(wanted);
        }
        Ok(newest.saturating_add(1))
    }

    /// Whether the publication has another size or kind than the entry of the file, whose publisher is another peer that offers
    /// the file.
    async fn contradicts(
        &self,
        entry: &FileEntry,
        publication: &Publication,
        by: PeerId,
    ) -> Result<bool, StorageError> {
        if entry.by == by || (entry.size, entry.kind) == (publication.size, publication.kind) {
            return Ok(false);
        }
        let Some(publisher) = self.peer_number(PEERS, &layout::peer_id_key(&entry.by)).await? else {
            return Ok(false);
        };
        Ok(self.read(PROVIDERS, &layout::provider_key(entry.no, publisher)).await?.is_some())
    }

    /// Reserves the name for this peer, durably. Published versions remain. Returns the peer whose reservation was replaced.
    pub async fn reserve(
        &self,
        name: &Name,
        by: PeerId,
        now: UnixMillis,
    ) -> Result<Option<PeerId>, CatalogueError> {
        let (key, record) = (layout::reservation_key(name), ReservationRecord { by, at: now });
        for _ in 0..ATTEMPTS {
            let (old, raw) = self.read_record::<ReservationRecord>(RESERVATIONS, &key).await?.unzip();
            let mut batch = Batch::new();
            require_same(&mut batch, RESERVATIONS, key.clone(), raw);
            batch.put(RESERVATIONS, key.clone(), layout::encode(&record));
            if self.commit_durably(batch).await? {
                return Ok(old.map(|old| old.by).filter(|old| *old != by));
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Removes the reservation of the name, durably. Returns `false` if the name was not reserved.
    pub async fn release(&self, name: &Name) -> Result<bool, StorageError> {
        self.delete_durably(RESERVATIONS, layout::reservation_key(name)).await
    }

    /// Returns the stored reservation of a name for this peer, or `None` if the name is not reserved.
    ///
    /// # Errors
    /// [`CatalogueError::NameReserved`] if the name is reserved for another peer.
    pub(super) async fn reservation_for(
        &self,
        name: &Name,
        peer: PeerId,
    ) -> Result<Option<Bytes>, CatalogueError> {
        match self.read_record(RESERVATIONS, &layout::reservation_key(name)).await? {
            Some((ReservationRecord { by, .. }, _)) if by != peer => {
                Err(CatalogueError::NameReserved { name: name.clone(), by })
            }
            reservation => Ok(reservation.map(|(_, raw)| raw)),
        }
    }

    /// Removes a file, the claims to it and all its names. A file with few claims is removed in one step, otherwise the names
    /// come last. Returns `false` if its entry is no longer `raw`; the file is kept then.
    pub(super) async fn remove_file(
        &self,
        id: &FileId,
        no: FileNumber,
        raw: &Bytes,
    ) -> Result<bool, StorageError> {
        loop {
            let mut batch = Batch::new();
            batch.require(FILES, layout::file_key(id), raw.clone());
            let (claims, mut last) =
                self.first_page(PROVIDERS, KeyRange::prefix(&layout::providers_prefix(no))).await?;
            for (key, _) in claims {
                let peer = layout::read_provider_key(key.as_bytes())?;
                claims::delete_claim(&mut batch, peer, no);
                claims::mark_cleared(&mut batch, peer);
            }
            let mut names = Vec::new();
            if last {
                let page;
                (page, last) = self.first_page(FILE_NAMES, KeyRange::prefix(id.as_bytes())).await?;
                for (key, _) in page {
                    let version = layout::version_key_of_file_name(key.as_bytes())?;
                    names.push(layout::read_version_key(version.as_bytes())?.0);
                    batch.delete(VERSIONS, version);
                    batch.delete(FILE_NAMES, key);
                }
            }
            if last {
                batch.delete(FILES, layout::file_key(id));
            }
            if !self.try_commit(batch, Durability::Buffered).await? {
                return Ok(false);
            }
            self.file_changed(id);
            names.iter().for_each(|name| self.name_changed(name));
            let gone = names.len() as u64;
            let subtract = |versions: u64| Some(versions.saturating_sub(gone));
            let _ = self.version_count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
            if last {
                return Ok(true);
            }
        }
    }

    /// Returns the first page of the range, and whether it is the whole range.
    async fn first_page(
        &self,
        space: Space,
        range: KeyRange,
    ) -> Result<(Vec<(Key, Bytes)>, bool), StorageError> {
        let page = self.storage.scan(space, range.clone(), PAGE).await?;
        // A page may be limited by its bytes, so its length does not tell.
        let whole = match page.last() {
            Some((last, _)) => self.storage.scan(space, range.after(last), 1).await?.is_empty(),
            None => true,
        };
        Ok((page, whole))
    }
}
