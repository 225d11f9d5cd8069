//! The tracker's persistent meaning on top of [`Storage`]: names and their versions, files, who claims to have
//! them, which peers are alive, which files the tracker keeps a copy of, and who came in by invitation.
//!
//! [`layout`] says what lies where. Several trackers may work on one database at the same time: whatever must not
//! be lost is a conditional commit, repeated with fresh values on a conflict, and nothing here believes its memory
//! for longer than a few seconds. There is no clock in here: every call is told the time, in milliseconds since
//! 1970-01-01 UTC.

mod damage;
pub mod describe;
pub mod error;
mod formats;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod layout;
pub mod leases;
pub mod members;
pub mod names;
pub mod pattern;
pub mod peers;
pub mod pins;
pub mod providers;
pub mod remembered;
pub mod reservations;
pub mod revocations;
#[cfg(any(test, feature = "testkit"))]
pub mod several;
pub mod sweep;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::machine;
use crate::protocol::message::CatalogueId;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};
use damage::Damage;
use error::CatalogueError;
use formats::{CATALOGUE, formats};
use layout::{FORMAT, FormatRecord, MAX_NUMBER, META};
use leases::{LeaseRules, LeaseTable};
use peers::PeerCache;
use remembered::Remembered;
use revocations::ListedAt;

/// How often a conditional commit is tried again after somebody else was faster.
const ATTEMPTS: usize = 100;
/// The entries of one page of a scan over many.
const PAGE: usize = 500;
/// How many reads all lists together have under way. A list may need thousands, and a database behind a network has few
/// connections: a look-up waits for no more than these to end.
const LIST_READS: usize = 4;
/// How long a list waits for its turn, and a new entry for a block of numbers.
const TURN: Duration = Duration::from_secs(10);
/// How many numbers for files and peers a tracker takes at once. What it has not given away when it stops is lost.
const NUMBERS: u64 = 1024;

/// The catalogue in a database.
#[derive(Debug)]
pub struct Catalogue {
    storage: Arc<dyn Storage>,
    id: CatalogueId,
    max_peers: u64,
    max_versions: u64,
    /// How old a remembered lease may be, in milliseconds.
    fresh: u64,
    leases: Mutex<LeaseTable>,
    cache: Mutex<PeerCache>,
    remembered: Remembered,
    counts: Counts,
    damage: Damage,
    /// Places for the reads of lists.
    list_reads: Semaphore,
    /// Who was thrown out, as it was read last.
    listed: Mutex<Option<ListedAt>>,
    /// Numbers that this tracker has taken and not yet given away.
    numbers: tokio::sync::Mutex<Range<u64>>,
    /// No number beyond this one was given away, as far as this tracker knows.
    highest_number: AtomicU64,
}

/// What is in the database, as far as this tracker has counted.
#[derive(Debug, Default)]
struct Counts {
    versions: AtomicU64,
    peers: AtomicU64,
}

/// What one tracker does for all on the same database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// [`Catalogue::sweep_peers`].
    Sweep,
    /// [`Catalogue::forget_files`].
    Forget,
}

impl Task {
    const fn key(self) -> &'static str {
        match self {
            Self::Sweep => "swept",
            Self::Forget => "forgot",
        }
    }
}

/// What decides over peers and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogueRules {
    /// The lengths of time that decide over peers.
    pub leases: LeaseRules,
    /// How old a remembered lease may be, in milliseconds.
    pub fresh: u64,
    /// How many peers there may be, dead ones that are kept for their return included.
    pub max_peers: u64,
    /// How many versions of names there may be.
    pub max_versions: u64,
    /// How many bytes of memory may be used to answer look-ups without the database.
    pub cache: usize,
}

impl Catalogue {
    /// Opens the catalogue in this database, or begins one in an empty database. One of an older format is brought to the
    /// newest.
    pub async fn open(
        storage: Arc<dyn Storage>,
        rules: CatalogueRules,
        now: u64,
    ) -> Result<Self, StorageError> {
        let keys = ["format", "catalogue", "stamp", "numbers"].map(layout::meta_key);
        for _ in 0..ATTEMPTS {
            let [format, id, stamp, numbers] = read_all(&*storage, META, &keys).await?;
            let (Some(format), Some(id)) = (&format, &id) else {
                if format.is_some() || id.is_some() {
                    let what = "the space meta holds only one of format version and catalogue id";
                    return Err(StorageError::corrupt(what));
                }
                let mut batch = Batch::new();
                let record = FormatRecord { v: FORMAT, what: CATALOGUE.to_owned(), note: None };
                batch.require_absent(META, keys[0].clone()).put(
                    META,
                    keys[0].clone(),
                    layout::encode(&record),
                );
                batch.put(
                    META,
                    keys[1].clone(),
                    Bytes::copy_from_slice(&machine::rng().random::<[u8; 16]>()),
                );
                // Nothing rests on it before something durable follows it, which takes it along.
                match storage.commit(batch, Durability::Buffered).await {
                    // Read back what now counts, whoever wrote it.
                    Ok(()) | Err(StorageError::Conflict | StorageError::Indeterminate { .. }) => continue,
                    Err(error) => return Err(error),
                }
            };
            if !formats().is_newest(format)? {
                formats().bring_forward(&*storage).await?;
                continue;
            }
            let id = <[u8; 16]>::try_from(&id[..]).map_err(|_| layout::damaged(META, b"catalogue"))?;
            let number = |raw: Option<Bytes>| raw.map(|raw| layout::read_number(META, &raw)).transpose();
            let (stamp, numbers) = (number(stamp)?, number(numbers)?.unwrap_or_default());
            return Ok(Self {
                storage,
                id: CatalogueId(id),
                max_peers: rules.max_peers,
                max_versions: rules.max_versions,
                fresh: rules.fresh,
                leases: Mutex::new(LeaseTable::new(rules.leases, stamp, now)),
                cache: Mutex::default(),
                remembered: Remembered::new(rules.cache, rules.fresh),
                counts: Counts::default(),
                damage: Damage::default(),
                list_reads: Semaphore::new(LIST_READS),
                listed: Mutex::default(),
                numbers: tokio::sync::Mutex::new(0..0),
                highest_number: AtomicU64::new(numbers),
            });
        }
        Err(StorageError::Unavailable { reason: "others write to it all the time".to_owned() })
    }

    /// The random id of this database, the same for all trackers on it.
    pub const fn id(&self) -> CatalogueId {
        self.id
    }

    /// A number for a file or a peer that nobody had before and nobody will have again.
    async fn next_number(&self) -> Result<u64, CatalogueError> {
        // Held over a durable commit, so that one block is taken and not one for each who waits; which may take its time.
        let mut numbers = timeout(TURN, self.numbers.lock())
            .await
            .map_err(|_| held_up("numbers for new entries are being taken"))?;
        if let Some(number) = numbers.next() {
            return Ok(number);
        }
        let key = layout::meta_key("numbers");
        for _ in 0..ATTEMPTS {
            let raw = self.read(META, &key).await?;
            let begin = raw.as_ref().map_or(Ok(0), |raw| layout::read_number(META, raw))?;
            let end = begin.saturating_add(NUMBERS);
            if end > MAX_NUMBER {
                return Err(CatalogueError::TooManyFiles);
            }
            let mut batch = Batch::new();
            match raw {
                Some(raw) => batch.require(META, key.clone(), raw),
                None => batch.require_absent(META, key.clone()),
            };
            batch.put(META, key.clone(), layout::number(end));
            // Of a commit of which the outcome is not known the numbers are lost. Durable, because a server that forgets it in a
            // crash would give the same numbers to another tracker.
            if !self.try_commit(batch, Durability::Durable).await? {
                continue;
            }
            *numbers = begin + 1..end;
            self.highest_number.fetch_max(end, Ordering::Relaxed);
            return Ok(begin);
        }
        Err(CatalogueError::Conflict)
    }

    fn highest_number(&self) -> u64 {
        self.highest_number.load(Ordering::Relaxed)
    }

    /// Whether it is this tracker's turn to do what one tracker does for all of them every `period` milliseconds. The key
    /// says when one last began.
    pub async fn take_turn(&self, task: Task, period: u64, now: u64) -> Result<bool, StorageError> {
        let key = layout::meta_key(task.key());
        let last = self.read(META, &key).await?;
        let at = last.as_ref().map(|raw| layout::read_number(META, raw)).transpose()?;
        // Clocks differ a little, and so does the time between two tries.
        let period = period - period / 10;
        if at.is_some_and(|at| at.abs_diff(now) < period) {
            return Ok(false);
        }
        let mut batch = Batch::new();
        match last {
            Some(last) => batch.require(META, key.clone(), last),
            None => batch.require_absent(META, key.clone()),
        };
        batch.put(META, key, layout::number(now));
        self.try_commit(batch, Durability::Buffered).await
    }

    /// Versions of names in the catalogue, as counted by the last [`Catalogue::count`] and seen since.
    pub fn versions(&self) -> u64 {
        self.counts.versions.load(Ordering::Relaxed)
    }

    /// How often a damaged entry was met and passed over since the start.
    pub fn damage_met(&self) -> u64 {
        self.damage.met()
    }

    /// Counts the versions of names and the peers in the database.
    pub async fn count(&self) -> Result<(), StorageError> {
        for (space, counter) in
            [(layout::VERSIONS, &self.counts.versions), (layout::LEASES, &self.counts.peers)]
        {
            let (mut range, mut count) = (KeyRange::all(), 0);
            loop {
                let page = self.storage.scan(space, range.clone(), PAGE).await?;
                let Some((last, _)) = page.last() else { break };
                count += page.len() as u64;
                range = range.after(last);
            }
            counter.store(count, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn read(&self, space: Space, key: &Key) -> Result<Option<Bytes>, StorageError> {
        let [value] = read_all(&*self.storage, space, std::array::from_ref(key)).await?;
        Ok(value)
    }

    /// Commits, and says whether it was applied: `false` on a conflict.
    async fn try_commit(&self, batch: Batch, durability: Durability) -> Result<bool, StorageError> {
        match self.storage.commit(batch, durability).await {
            Ok(()) => Ok(true),
            Err(StorageError::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

async fn read_all<const N: usize>(
    storage: &dyn Storage,
    space: Space,
    keys: &[Key; N],
) -> Result<[Option<Bytes>; N], StorageError> {
    let values = storage.get(space, keys).await?;
    values
        .try_into()
        .map_err(|_| StorageError::corrupt("the storage gave another number of values than asked for"))
}

/// The format of the catalogue in a database; none where there is no catalogue. An error where only a newer program can
/// read it.
pub async fn stored_format(storage: &dyn Storage) -> Result<Option<u64>, StorageError> {
    formats().of(storage).await
}

fn held_up(by: &str) -> StorageError {
    StorageError::Unavailable { reason: format!("{by}, for more than {TURN:?}") }
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod members_tests;
#[cfg(test)]
mod remembered_tests;
#[cfg(test)]
mod tests;
