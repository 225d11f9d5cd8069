//! Eviction of peers that are away from a full table of peers.
//!
//! Without it, an attacker that opens sessions with many keys would keep new peers out for the retention period.

use std::sync::atomic::Ordering;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout};

use super::access::{PAGE, TURN_TIMEOUT};
use super::catalogue::{Catalogue, LIST_READS};
use super::layout::{self, LEASES, LeaseRecord, PeerNumber};
use super::sweep::pause_after_scan;
use enjambre_core::{KeyRange, StorageError, StorageExt, UnixMillis};

/// The part of the table that one eviction frees.
const EVICTED_PART: u64 = 100;

impl Catalogue {
    /// Returns whether the table has a free entry for a new peer, if necessary after an eviction.
    pub(super) async fn has_free_entry(&self, now: UnixMillis) -> Result<bool, StorageError> {
        let is_free = || self.peer_count.load(Ordering::Relaxed) < self.rules.max_peers;
        if is_free() {
            return Ok(true);
        }
        // Concurrent requests wait for one eviction.
        let Ok(mut last) = timeout(TURN_TIMEOUT, self.evicted.lock()).await else { return Ok(false) };
        let is_recent =
            last.is_some_and(|(last, pause)| now.checked_since(last).is_some_and(|age| age < pause));
        if !is_free() && !is_recent {
            let start = Instant::now();
            let evicted = self.evict(now).await?;
            // Without a result it is not repeated soon, because it reads all leases.
            *last = (evicted == 0).then(|| (now, pause_after_scan(start.elapsed())));
            if evicted > 0 {
                tracing::info!(peers = evicted, "table of peers full; peers that are away evicted");
            }
        }
        Ok(is_free())
    }

    /// Removes peers that are away: first those that never offered a file, then those that are away for the longest time.
    async fn evict(&self, now: UnixMillis) -> Result<usize, StorageError> {
        let mut away = Vec::new();
        let mut entries = self.storage.entries(LEASES, KeyRange::all(), PAGE);
        while let Some((key, raw)) = entries.next().await? {
            let record = layout::decode::<LeaseRecord>(LEASES, &raw);
            let Some(record) = self.damage.skip(record, now)? else { continue };
            let peer = layout::read_peer(LEASES, key.as_bytes())?;
            if !self.leases.lock().is_alive(peer, &record, now) {
                away.push((record.offered, record.renewed, peer));
            }
        }
        away.sort_unstable();
        let wanted = self.rules.max_peers.div_ceil(EVICTED_PART);
        away.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        stream::iter(away)
            .map(async |(.., peer)| self.evict_peer(peer, now).await)
            .buffer_unordered(LIST_READS)
            .try_fold(0, async |evicted, removed| Ok(evicted + usize::from(removed)))
            .await
    }

    /// Removes a peer, unless it was removed or has returned meanwhile.
    async fn evict_peer(&self, peer: PeerNumber, now: UnixMillis) -> Result<bool, StorageError> {
        let Some((record, raw)) = self.read_lease(peer, now).await? else { return Ok(false) };
        let is_alive = self.leases.lock().is_alive(peer, &record, now);
        let removed = !is_alive && self.remove_peer(peer, &record, raw).await?;
        if removed {
            self.peer_count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(removed)
    }
}
