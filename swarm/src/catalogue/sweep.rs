//! The periodic tasks: removal of peers that stay away, of claims of earlier sessions, and of files without providers.
//!
//! Each step is conditional on the entries on which its decision is based, so a peer that returns meanwhile wins.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::access::{PAGE, replace, require_same};
use super::catalogue::Catalogue;
use super::claims;
use super::layout::{
    self, CLEARED, Claim, FILES, FileEntry, FileNumber, LEASES, LeaseRecord, MAX_NUMBER, META, OFFERS, PEERS,
    PeerNumber, SESSIONS,
};
use super::leases::Verdict;
use enjambre_core::{Batch, Durability, Key, KeyRange, StorageError, StorageExt, UnixMillis};

/// The result of a peer sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// The number of peers that are alive.
    pub alive: u64,
    /// The number of peers that were removed with their claims.
    pub peers: u64,
    /// The number of claims of earlier sessions that were deleted.
    pub claims: u64,
}

pub(super) fn read_lease(key: &Key, raw: &Bytes) -> Result<(PeerNumber, LeaseRecord), StorageError> {
    Ok((layout::read_peer(LEASES, key.as_bytes())?, layout::decode(LEASES, raw)?))
}

fn read_offer((key, value): (Key, Bytes)) -> Result<(FileNumber, Bytes), StorageError> {
    Ok((layout::read_offer_key(key.as_bytes())?, value))
}

/// Returns the shortest time between two scans of all leases that remotes can cause, after one that took this time: they
/// take at most a tenth of the time.
pub(crate) fn pause_after_scan(took: Duration) -> Duration {
    Duration::from_secs(1).max(took.saturating_mul(9))
}

/// A periodic task that one tracker does for all trackers on a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// [`Catalogue::sweep_peers`].
    Sweep,
    /// [`Catalogue::expire_files`].
    Expire,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sweep => "sweep",
            Self::Expire => "expire",
        })
    }
}

impl Catalogue {
    /// Whether this tracker is to do the task now, which is due every `period`. If so, records the start.
    pub async fn take_turn(
        &self,
        task: Task,
        period: Duration,
        now: UnixMillis,
    ) -> Result<bool, StorageError> {
        let key = layout::meta_key(match task {
            Task::Sweep => "swept",
            Task::Expire => "expired",
        });
        let last = self.read(META, &key).await?;
        let at = last.as_ref().map(|raw| layout::read_number(META, raw)).transpose()?.map(UnixMillis);
        // Tolerates clocks and timers that differ a little.
        let period = period - period / 10;
        if at.is_some_and(|at| at.saturating_since(now).max(now.saturating_since(at)) < period) {
            return Ok(false);
        }
        let mut batch = Batch::new();
        require_same(&mut batch, META, key.clone(), last);
        batch.put(META, key, layout::number(now.get()));
        self.try_commit(batch, Durability::Buffered).await
    }

    /// Removes peers that have been away for the retention period, and claims of earlier sessions.
    pub async fn sweep_peers(&self, now: UnixMillis) -> Result<Swept, StorageError> {
        let mut swept = Swept::default();
        let (mut entries, mut seen) = (self.storage.entries(LEASES, KeyRange::all(), PAGE), 0);
        while let Some((key, raw)) = entries.next().await? {
            seen += 1;
            let Some((peer, record)) = self.damage.skip(read_lease(&key, &raw), now)? else { continue };
            let (alive, verdict) = {
                let leases = self.leases.lock();
                (leases.is_alive(peer, &record, now), leases.verdict(peer, &record, now))
            };
            swept.alive += u64::from(alive);
            match verdict {
                Verdict::Keep => {}
                Verdict::Settle => {
                    let claims = self.settle(peer, record, raw, now).await;
                    swept.claims += self.damage.skip(claims, now)?.unwrap_or_default();
                }
                Verdict::Remove => {
                    let removed = self.remove_peer(peer, &record, raw).await;
                    swept.peers += u64::from(self.damage.skip(removed, now)?.unwrap_or_default());
                }
            }
        }
        self.peer_count.store(seen - swept.peers, Ordering::Relaxed);
        Ok(swept)
    }

    /// Counts the peers that are alive.
    pub async fn count_alive_peers(&self, now: UnixMillis) -> Result<u64, StorageError> {
        let (mut entries, mut alive) = (self.storage.entries(LEASES, KeyRange::all(), PAGE), 0);
        while let Some((key, raw)) = entries.next().await? {
            if let Some((peer, record)) = self.damage.skip(read_lease(&key, &raw), now)? {
                alive += u64::from(self.leases.lock().is_alive(peer, &record, now));
            }
        }
        Ok(alive)
    }

    /// Deletes the claims of earlier sessions of the peer and returns their number.
    async fn settle(
        &self,
        peer: PeerNumber,
        record: LeaseRecord,
        raw: Bytes,
        now: UnixMillis,
    ) -> Result<u64, StorageError> {
        let mut removed = 0;
        let current = record.began.min(UnixMillis(MAX_NUMBER));
        let mut pages = self.storage.pages(OFFERS, KeyRange::prefix(&layout::offers_prefix(peer)), PAGE);
        while let Some(page) = pages.next().await? {
            let mut batch = Batch::new();
            let mut earlier = 0;
            for entry in page {
                let (file, value) = read_offer(entry)?;
                match self.damage.skip(Claim::decode_offer(&value), now)? {
                    Some((_, began)) if began != current => {}
                    _ => continue,
                }
                // Conflicts with a concurrent announcement of the same file.
                batch.require(OFFERS, layout::offer_key(peer, file), value);
                claims::delete_claim(&mut batch, peer, file);
                earlier += 1;
            }
            if earlier == 0 {
                continue;
            }
            claims::mark_cleared(&mut batch, peer);
            if !self.try_commit(batch, Durability::Buffered).await? {
                // The peer is announcing; the next sweep continues.
                return Ok(removed);
            }
            removed += earlier;
        }
        let mut batch = Batch::new();
        replace(&mut batch, LEASES, layout::peer_key(peer), raw, &LeaseRecord { settled: true, ..record });
        // After a conflict the next sweep tries again and finds no more claims.
        self.try_commit(batch, Durability::Buffered).await?;
        Ok(removed)
    }

    pub(super) async fn remove_peer(
        &self,
        peer: PeerNumber,
        record: &LeaseRecord,
        mut raw: Bytes,
    ) -> Result<bool, StorageError> {
        loop {
            let range = KeyRange::prefix(&layout::offers_prefix(peer));
            let page = self.storage.scan(OFFERS, range, PAGE).await?;
            let last = page.is_empty();
            let mut batch = Batch::new();
            batch.require(LEASES, layout::peer_key(peer), raw);
            for entry in page {
                claims::delete_claim(&mut batch, peer, read_offer(entry)?.0);
            }
            // The session ends with the first deleted claim, so a peer that returns opens a new one and announces everything.
            batch.delete(SESSIONS, layout::session_key(record.session));
            raw = layout::encode(&LeaseRecord { left: true, ..record.clone() });
            if last {
                batch.delete(LEASES, layout::peer_key(peer));
                batch.delete(CLEARED, layout::peer_key(peer));
                batch.delete(PEERS, layout::peer_id_key(&record.id));
            } else {
                batch.put(LEASES, layout::peer_key(peer), raw.clone());
                claims::mark_cleared(&mut batch, peer);
            }
            if !self.try_commit(batch, Durability::Buffered).await? {
                return Ok(false);
            }
            if last {
                self.cache.lock().remove(peer);
                return Ok(true);
            }
        }
    }

    /// Marks files without living providers, and removes those that have been marked for `retention`. Returns the
    /// number of removed files.
    pub async fn expire_files(&self, retention: Duration, now: UnixMillis) -> Result<u64, StorageError> {
        let (mut entries, mut expired) = (self.storage.entries(FILES, KeyRange::all(), PAGE), 0);
        while let Some((key, raw)) = entries.next().await? {
            let removed = self.expire_file(&key, raw, retention, now).await;
            expired += u64::from(self.damage.skip(removed, now)?.unwrap_or_default());
        }
        Ok(expired)
    }

    async fn expire_file(
        &self,
        key: &Key,
        raw: Bytes,
        retention: Duration,
        now: UnixMillis,
    ) -> Result<bool, StorageError> {
        let id = layout::read_file_key(FILES, key.as_bytes())?;
        let entry: FileEntry = layout::decode(FILES, &raw)?;
        // A tracker that has cached the number of the file announces it without reading the mark.
        let retention = retention.max(self.rules.cache_ttl.saturating_mul(2));
        let alive = self.has_living_provider(entry.no, now).await?;
        let gone = match entry.gone {
            // A mark in the future comes from a wrong clock.
            Some(since) if !alive && since <= now => {
                return Ok(
                    now.saturating_since(since) >= retention && self.remove_file(&id, entry.no, &raw).await?
                );
            }
            None if alive => return Ok(false),
            _ => (!alive).then_some(now),
        };
        let mut batch = Batch::new();
        replace(&mut batch, FILES, key.clone(), raw, &FileEntry { gone, ..entry });
        self.try_commit(batch, Durability::Buffered).await?;
        // Later announcements at this tracker must read the mark.
        self.file_changed(&id);
        Ok(false)
    }
}
