//! Clearing away: peers that stay away, claims of former sessions, files that nobody offers any more.
//!
//! Every step is conditional on what it was decided by, so a peer that comes back in the middle wins.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Catalogue;
use super::layout::{
    self, CLEARED, Claim, FILES, FileEntry, LEASES, LeaseRecord, MAX_NUMBER, OFFERS, PEERS, PeerNumber,
    SESSIONS,
};
use super::leases::Verdict;
use crate::model::id::FileId;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange};

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Peers that are alive.
    pub living: u64,
    /// Peers that were taken away with their claims.
    pub peers: u64,
    /// Claims of former sessions that were taken away.
    pub claims: u64,
}

fn read_lease(key: &Key, raw: &Bytes) -> Result<(PeerNumber, LeaseRecord), StorageError> {
    Ok((layout::read_peer(LEASES, key.as_bytes())?, layout::decode(LEASES, raw)?))
}

impl Catalogue {
    /// Looks at every peer once, and takes away what is out of date.
    pub async fn sweep_peers(&self, now: u64) -> Result<Swept, StorageError> {
        let mut swept = Swept::default();
        let (mut range, mut seen) = (KeyRange::all(), 0);
        loop {
            let page = self.storage.scan(LEASES, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            seen += page.len() as u64;
            for (key, raw) in page {
                let Some((peer, record)) = self.damage.pass_over(read_lease(&key, &raw), now)? else {
                    continue;
                };
                let (alive, verdict) = {
                    let leases = self.leases.lock();
                    (leases.is_alive(peer, &record, now), leases.verdict(peer, &record, now))
                };
                swept.living += u64::from(alive);
                match verdict {
                    Verdict::Keep => {}
                    Verdict::Settle => {
                        let claims = self.settle(peer, record, &raw, now).await;
                        swept.claims += self.damage.pass_over(claims, now)?.unwrap_or_default();
                    }
                    Verdict::Remove => {
                        let removed = self.remove_peer(peer, &record, &raw).await;
                        swept.peers += u64::from(self.damage.pass_over(removed, now)?.unwrap_or_default());
                    }
                }
            }
        }
        self.counts.peers.store(seen.saturating_sub(swept.peers), Ordering::Relaxed);
        Ok(swept)
    }

    /// Peers that are alive, counted in the database.
    pub async fn living(&self, now: u64) -> Result<u64, StorageError> {
        let (mut range, mut living) = (KeyRange::all(), 0);
        loop {
            let page = self.storage.scan(LEASES, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(living) };
            range = range.after(last);
            for (key, raw) in page {
                let Some((peer, record)) = self.damage.pass_over(read_lease(&key, &raw), now)? else {
                    continue;
                };
                living += u64::from(self.leases.lock().is_alive(peer, &record, now));
            }
        }
    }

    async fn settle(
        &self,
        peer: PeerNumber,
        record: LeaseRecord,
        raw: &Bytes,
        now: u64,
    ) -> Result<u64, StorageError> {
        let mut after = None;
        let mut removed = 0;
        let current = record.hello.min(MAX_NUMBER);
        loop {
            let page = self.offers_page(peer, after).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let mut batch = Batch::new();
            let mut former = 0;
            for (file, value) in page {
                match self.damage.pass_over(Claim::decode_offer(&value), now)? {
                    Some((_, hello)) if hello != current => {}
                    _ => continue,
                }
                // One that is announced in this moment stays.
                batch.require(OFFERS, layout::offer_key(peer, file), value);
                super::providers::delete_claim(&mut batch, peer, file);
                former += 1;
            }
            if former == 0 {
                continue;
            }
            super::providers::note_cleared(&mut batch, peer);
            if !self.try_commit(batch, Durability::Buffered).await? {
                // The peer is announcing at this moment; the next sweep goes on.
                return Ok(removed);
            }
            removed += former;
        }
        let mut batch = Batch::new();
        batch.require(LEASES, layout::peer_key(peer), raw.clone());
        batch.put(LEASES, layout::peer_key(peer), layout::encode(&LeaseRecord { settled: true, ..record }));
        // After a conflict the next sweep finds nothing to take away and tries again.
        self.try_commit(batch, Durability::Buffered).await?;
        Ok(removed)
    }

    async fn remove_peer(
        &self,
        peer: PeerNumber,
        record: &LeaseRecord,
        raw: &Bytes,
    ) -> Result<bool, StorageError> {
        let mut raw = raw.clone();
        loop {
            let page = self.offers_page(peer, None).await?;
            let mut batch = Batch::new();
            batch.require(LEASES, layout::peer_key(peer), raw);
            for (file, _) in &page {
                super::providers::delete_claim(&mut batch, peer, *file);
            }
            // With the first claim the session ends: a peer that comes back now says hello and announces all again.
            batch.delete(SESSIONS, layout::session_key(record.session));
            raw = layout::encode(&LeaseRecord { left: true, ..record.clone() });
            if page.is_empty() {
                batch.delete(LEASES, layout::peer_key(peer));
                batch.delete(CLEARED, layout::peer_key(peer));
                batch.delete(PEERS, layout::peer_id_key(&record.id));
            } else {
                batch.put(LEASES, layout::peer_key(peer), raw.clone());
                super::providers::note_cleared(&mut batch, peer);
            }
            if !self.try_commit(batch, Durability::Buffered).await? {
                return Ok(false);
            }
            if page.is_empty() {
                self.cache.lock().forget(peer);
                return Ok(true);
            }
        }
    }

    /// Looks at every file once: notes since when it has no living provider, and takes away those that have had
    /// none for `forget` milliseconds. Returns how many files went.
    pub async fn forget_files(&self, forget: u64, now: u64) -> Result<u64, StorageError> {
        let (mut range, mut forgotten) = (KeyRange::all(), 0);
        loop {
            let page = self.storage.scan(FILES, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(forgotten) };
            range = range.after(last);
            for (key, raw) in page {
                let forgets = async {
                    let id = layout::read_file_key(FILES, key.as_bytes())?;
                    self.forget_file(&id, layout::decode(FILES, &raw)?, &raw, forget, now).await
                };
                forgotten += u64::from(self.damage.pass_over(forgets.await, now)?.unwrap_or_default());
            }
        }
    }

    async fn forget_file(
        &self,
        id: &FileId,
        entry: FileEntry,
        raw: &Bytes,
        forget: u64,
        now: u64,
    ) -> Result<bool, StorageError> {
        // Whoever remembers the file as one that nobody is about to forget can still announce it without a look at
        // the mark.
        let forget = forget.max(self.fresh.saturating_mul(2));
        let alive = self.has_living_provider(entry.no, now).await?;
        let gone = match entry.gone {
            // A mark from the future was set by a clock that was wrong.
            Some(since) if !alive && since <= now => {
                if now - since >= forget {
                    return Ok(self.remove_file(id, entry.no, raw).await?.is_some());
                }
                return Ok(false);
            }
            None if alive => return Ok(false),
            _ if alive => None,
            _ => Some(now),
        };
        let mut batch = Batch::new();
        batch.require(FILES, layout::file_key(id), raw.clone());
        batch.put(FILES, layout::file_key(id), layout::encode(&FileEntry { gone, ..entry }));
        self.try_commit(batch, Durability::Buffered).await?;
        // Whoever announces it must see the mark.
        self.remembered.forget_file(id);
        Ok(false)
    }
}
