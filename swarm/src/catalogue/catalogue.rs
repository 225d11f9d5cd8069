//! The catalogue: opening, counting and access to the storage.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::access::{self, ATTEMPTS, PAGE, read_all};
use super::changes::{ChangeListener, Listeners};
use super::damage::Damage;
use super::gaps::{Gaps, TimeRecord};
use super::layout::{self, FORMAT, FileNumber, FormatRecord, META, PeerNumber};
use super::leases::{LeaseRules, LeaseTable};
use super::peer_cache::PeerCache;
use super::read_cache::ReadCache;
use crate::membership::credentials::revocations::Revocation;
use crate::rate_limit::turns::Turns;
use enjambre_core::runtime;
use enjambre_core::storage::format::check_version;
use enjambre_core::{
    Batch, CatalogueId, Durability, FileId, Key, KeyRange, Name, Space, Storage, StorageError, StorageExt,
    UnixMillis,
};

/// The purpose of the database in its format record.
const CATALOGUE: &str = "catalogue";
/// The memory of a cached file number.
pub(super) const FILE_NUMBER_BYTES: usize = 128;
/// The number of concurrent reads of all searches together. A list may need thousands of reads, and a database behind a
/// network has few connections; the limit leaves connections and processor time for lookups.
pub(super) const LIST_READS: usize = 4;
/// The number of these for one address.
const LIST_READS_PER_ADDRESS: usize = LIST_READS / 2;
/// The number of concurrent large announcements and withdrawals, each of which reads and writes hundreds of entries. Few, for
/// the same reason.
const LARGE_CHANGES: usize = 4;
/// The number of these for one address.
const LARGE_CHANGES_PER_ADDRESS: usize = LARGE_CHANGES / 2;

/// The catalogue in a database.
#[derive(Debug)]
pub struct Catalogue {
    pub(super) storage: Arc<dyn Storage>,
    id: CatalogueId,
    pub(super) rules: CatalogueRules,
    pub(super) leases: Mutex<LeaseTable>,
    pub(super) gaps: Mutex<Gaps>,
    pub(super) cache: Mutex<PeerCache>,
    /// The numbers of files that exist and are not marked for expiry, so that repeated announcements need not read the files.
    pub(crate) file_numbers: ReadCache<FileId, FileNumber>,
    pub(super) listeners: Listeners,
    /// The number of versions of names, as far as this tracker has counted.
    pub(super) version_count: AtomicU64,
    /// The number of peers, as far as this tracker has counted.
    pub(super) peer_count: AtomicU64,
    /// The earliest time of the next eviction of peers, if it has to wait.
    pub(super) next_eviction: tokio::sync::Mutex<Option<Instant>>,
    pub(super) damage: Damage,
    /// The turns of lists and other searches.
    pub(super) searches: Turns<IpAddr>,
    /// The turns of large announcements and withdrawals.
    pub(super) large_changes: Turns<IpAddr>,
    /// One peer waits for one of these turns at a time, so that it does not delay other peers with the same address.
    pub(super) large_changes_of_peers: Turns<PeerNumber>,
    /// The revocation list as of one version, including revocations that have expired since. It saves reading the list for
    /// each of many revocations in a row.
    pub(super) revocations: Mutex<Option<(u64, Vec<Revocation>)>>,
    /// The numbers that this tracker has allocated and not yet used.
    pub(super) numbers: tokio::sync::Mutex<Range<u64>>,
    /// An upper bound of the numbers in use, as far as this tracker knows.
    pub(super) highest_number: AtomicU64,
}

/// The limits and periods of a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogueRules {
    /// The periods that determine whether peers are alive.
    pub leases: LeaseRules,
    /// The time for which cached entries are valid.
    pub cache_ttl: Duration,
    /// The highest number of peers, including peers that are away and kept for their return.
    pub max_peers: u64,
    /// The highest number of versions of names.
    pub max_versions: u64,
    /// The memory for the numbers of recently announced files, in bytes.
    pub file_number_cache: usize,
}

impl Catalogue {
    /// Opens the catalogue in this database, or creates one in an empty database.
    ///
    /// # Errors
    /// [`StorageError::NewerFormat`] or [`StorageError::Corrupt`] if the database has another format or purpose.
    pub async fn open(
        storage: Arc<dyn Storage>,
        rules: CatalogueRules,
        now: UnixMillis,
    ) -> Result<Self, StorageError> {
        let keys = ["format", "catalogue", "stamp", "numbers", "time"].map(layout::meta_key);
        for _ in 0..ATTEMPTS {
            let [format, id, stamp, numbers, time] = read_all(&*storage, META, &keys).await?;
            let (Some(format), Some(id)) = (&format, &id) else {
                if format.is_some() || id.is_some() {
                    let what = "the space meta has only one of format version and catalogue id";
                    return Err(StorageError::corrupt(what));
                }
                let mut batch = Batch::new();
                let record = FormatRecord { v: FORMAT, what: CATALOGUE.to_owned() };
                batch.require_absent(META, keys[0].clone());
                batch.put(META, keys[0].clone(), layout::encode(&record));
                let id = Bytes::copy_from_slice(&runtime::rng().random::<[u8; 16]>());
                batch.put(META, keys[1].clone(), id);
                // Buffered: the first durable commit that depends on it makes it durable, too.
                match storage.commit(batch, Durability::Buffered).await {
                    // Read back which tracker's record was stored.
                    Ok(()) | Err(StorageError::Conflict | StorageError::Indeterminate { .. }) => continue,
                    Err(error) => return Err(error),
                }
            };
            check_format(format)?;
            let id = <[u8; 16]>::try_from(&id[..]).map_err(|_| layout::damaged(META, b"catalogue"))?;
            let number = |raw: Option<Bytes>| raw.map(|raw| layout::read_number(META, &raw)).transpose();
            let (stamp, numbers) = (number(stamp)?, number(numbers)?.unwrap_or_default());
            // A damaged time hides nothing: all writes may be missing then.
            let time = time.and_then(|raw| layout::decode::<TimeRecord>(META, &raw).ok()).unwrap_or_default();
            return Ok(Self {
                storage,
                id: CatalogueId(id),
                rules,
                gaps: Mutex::new(Gaps::new(&time, now)),
                leases: Mutex::new(LeaseTable::new(rules.leases, stamp.map(UnixMillis), now)),
                cache: Mutex::default(),
                file_numbers: ReadCache::new(rules.file_number_cache, FILE_NUMBER_BYTES, rules.cache_ttl),
                listeners: Listeners::default(),
                version_count: AtomicU64::default(),
                peer_count: AtomicU64::default(),
                next_eviction: tokio::sync::Mutex::default(),
                damage: Damage::default(),
                searches: Turns::new(LIST_READS, LIST_READS_PER_ADDRESS),
                large_changes: Turns::new(LARGE_CHANGES, LARGE_CHANGES_PER_ADDRESS),
                large_changes_of_peers: Turns::new(Semaphore::MAX_PERMITS, 1),
                revocations: Mutex::default(),
                numbers: tokio::sync::Mutex::new(0..0),
                highest_number: AtomicU64::new(numbers),
            });
        }
        Err(StorageError::Unavailable {
            reason: "other trackers write to the catalogue all the time".to_owned(),
        })
    }

    /// The random id of this database, the same for all trackers on it.
    pub const fn id(&self) -> CatalogueId {
        self.id
    }

    /// The limits and periods.
    pub const fn rules(&self) -> CatalogueRules {
        self.rules
    }

    /// Notifies the listener of each write of this catalogue, until the listener is dropped.
    pub fn add_listener(&self, listener: &Arc<dyn ChangeListener>) {
        self.listeners.add(listener);
    }

    /// Reports that the entry of the file changed, or that the file was removed.
    pub(super) fn file_changed(&self, id: &FileId) {
        self.file_numbers.remove(id);
        self.listeners.notify(|listener| listener.file_changed(id));
    }

    pub(super) fn name_changed(&self, name: &Name) {
        self.listeners.notify(|listener| listener.name_changed(name));
    }

    pub(super) fn liveness_changed(&self) {
        self.listeners.notify(ChangeListener::liveness_changed);
    }

    /// Returns the number of versions of names, as of the last [`Catalogue::count`] and the changes of this tracker since.
    pub fn versions(&self) -> u64 {
        self.version_count.load(Ordering::Relaxed)
    }

    /// Returns the number of peers, including peers that are away, in the same way.
    pub fn peers(&self) -> u64 {
        self.peer_count.load(Ordering::Relaxed)
    }

    /// Counts the versions of names and the peers in the database.
    pub async fn count(&self) -> Result<(), StorageError> {
        for (space, counter) in [(layout::VERSIONS, &self.version_count), (layout::LEASES, &self.peer_count)]
        {
            let (mut pages, mut count) = (self.storage.pages(space, KeyRange::all(), PAGE), 0);
            while let Some(page) = pages.next().await? {
                count += page.len() as u64;
            }
            counter.store(count, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(super) async fn read(&self, space: Space, key: &Key) -> Result<Option<Bytes>, StorageError> {
        access::read(&*self.storage, space, key).await
    }

    /// Reads a record. Returns it with its stored bytes.
    pub(super) async fn read_record<T: DeserializeOwned>(
        &self,
        space: Space,
        key: &Key,
    ) -> Result<Option<(T, Bytes)>, StorageError> {
        let Some(raw) = self.read(space, key).await? else { return Ok(None) };
        Ok(Some((layout::decode(space, &raw)?, raw)))
    }

    /// Commits the batch. Returns `false` on a conflict.
    pub(super) async fn try_commit(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> Result<bool, StorageError> {
        match self.storage.commit(batch, durability).await {
            Ok(()) => Ok(true),
            Err(StorageError::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Commits the batch durably. Returns `false` on a conflict, or if the outcome is unknown: the caller reads the entries
    /// again, and if the changes are there, a sync makes them durable.
    pub(super) async fn commit_durably(&self, batch: Batch) -> Result<bool, StorageError> {
        match self.try_commit(batch, Durability::Durable).await {
            Err(StorageError::Indeterminate { .. }) => Ok(false),
            result => result,
        }
    }

    /// Deletes an entry, unless it changed since it was read.
    pub(super) async fn delete_unchanged(
        &self,
        space: Space,
        key: Key,
        read: Bytes,
    ) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        batch.require(space, key.clone(), read).delete(space, key);
        self.try_commit(batch, Durability::Buffered).await.map(drop)
    }

    /// Deletes an entry durably. Returns `false` if it did not exist.
    pub(super) async fn delete_durably(&self, space: Space, key: Key) -> Result<bool, StorageError> {
        let existed = self.read(space, &key).await?.is_some();
        let mut batch = Batch::new();
        batch.delete(space, key);
        self.storage.commit(batch, Durability::Durable).await?;
        Ok(existed)
    }
}

/// Checks a format record and returns the format version.
pub(super) fn check_format(raw: &[u8]) -> Result<u64, StorageError> {
    let FormatRecord { v, what } = layout::decode(META, raw)?;
    if what != CATALOGUE {
        let what: String = what.chars().take(40).collect();
        return Err(StorageError::corrupt(format!("the database contains a {what:?} and not a catalogue")));
    }
    check_version("the database of the catalogue", v, FORMAT)?;
    Ok(v)
}

/// Returns the format version of the catalogue in a database, or `None` if it has no catalogue.
///
/// # Errors
/// [`StorageError::NewerFormat`] or [`StorageError::Corrupt`] if this program cannot read the database.
pub async fn stored_format(storage: &dyn Storage) -> Result<Option<u64>, StorageError> {
    let format = access::read(storage, META, &layout::meta_key("format")).await?;
    format.map(|raw| check_format(&raw)).transpose()
}
