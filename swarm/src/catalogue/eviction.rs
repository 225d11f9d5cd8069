//! Eviction of peers that are away from a full table of peers.
//!
//! Without it, an attacker that opens sessions with many keys would keep new peers out for the retention period.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::access::{PAGE, TURN_TIMEOUT};
use super::catalogue::Catalogue;
use super::layout::{self, LEASES, LeaseRecord, MEMBERS, OFFERS, PeerNumber};
use enjambre_core::{KeyRange, PeerId, StorageError, StorageExt, UnixMillis};

/// The part of the table that one eviction frees.
const EVICTED_PART: u64 = 100;
/// The minimum time between evictions, each of which reads all leases.
const INTERVAL: Duration = Duration::from_secs(1);
/// The number of peers whose files and membership one eviction looks up.
const MAX_EXAMINED: usize = 10_000;

impl Catalogue {
    /// Returns whether the table has a free entry for a new peer, if necessary after an eviction.
    pub(super) async fn has_free_entry(&self, now: UnixMillis) -> Result<bool, StorageError> {
        let is_free = || self.peer_count.load(Ordering::Relaxed) < self.rules.max_peers;
        if is_free() {
            return Ok(true);
        }
        // Concurrent requests wait for one eviction.
        let Ok(mut last) = timeout(TURN_TIMEOUT, self.evicted.lock()).await else { return Ok(false) };
        let is_recent = last.and_then(|last| now.checked_since(last)).is_some_and(|age| age < INTERVAL);
        if !is_free() && !is_recent {
            *last = Some(now);
            let evicted = self.evict(now).await?;
            if evicted > 0 {
                tracing::info!(peers = evicted, "table of peers full; peers that are away evicted");
            }
        }
        Ok(is_free())
    }

    /// Removes peers that are away: first those without files and membership, then those that are away for the longest time.
    async fn evict(&self, now: UnixMillis) -> Result<u64, StorageError> {
        let mut away = Vec::new();
        let mut entries = self.storage.entries(LEASES, KeyRange::all(), PAGE);
        while let Some((key, raw)) = entries.next().await? {
            let record = layout::decode::<LeaseRecord>(LEASES, &raw);
            let Some(record) = self.damage.skip(record, now)? else { continue };
            let peer = layout::read_peer(LEASES, key.as_bytes())?;
            if !self.leases.lock().is_alive(peer, &record, now) {
                away.push((record.renewed, peer, record.id));
            }
        }
        away.sort_unstable();
        let wanted = self.rules.max_peers.div_ceil(EVICTED_PART);
        let mut evicted = 0;
        for keeps_known in [true, false] {
            let limit = if keeps_known { MAX_EXAMINED } else { usize::MAX };
            for (_, peer, id) in away.iter().take(limit) {
                if evicted >= wanted {
                    return Ok(evicted);
                }
                if keeps_known && self.has_files_or_membership(*peer, id).await? {
                    continue;
                }
                // It may have been evicted, or may have returned meanwhile.
                let Some((record, raw)) = self.read_lease(*peer, now).await? else { continue };
                let is_alive = self.leases.lock().is_alive(*peer, &record, now);
                if !is_alive && self.remove_peer(*peer, &record, raw).await? {
                    self.peer_count.fetch_sub(1, Ordering::Relaxed);
                    evicted += 1;
                }
            }
        }
        Ok(evicted)
    }

    async fn has_files_or_membership(&self, peer: PeerNumber, id: &PeerId) -> Result<bool, StorageError> {
        let offers = KeyRange::prefix(&layout::offers_prefix(peer));
        Ok(!self.storage.scan(OFFERS, offers, 1).await?.is_empty()
            || self.read(MEMBERS, &layout::peer_id_key(id)).await?.is_some())
    }
}
