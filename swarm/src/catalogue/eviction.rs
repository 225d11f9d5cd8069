//! Eviction of peers that are away from a full table of peers.
//!
//! Without it, an attacker that opens sessions with many keys would keep new peers out for the retention period.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout};

use super::access::{PAGE, TURN_TIMEOUT};
use super::catalogue::{Catalogue, LIST_READS};
use super::layout::{LEASES, PeerNumber};
use super::sweep::{pause_after_scan, read_lease};
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
        let Ok(mut not_before) = timeout(TURN_TIMEOUT, self.next_eviction.lock()).await else {
            return Ok(false);
        };
        let start = Instant::now();
        if !is_free() && not_before.is_none_or(|time| time <= start) {
            // In case that this request is cancelled.
            *not_before = Some(start + pause_after_scan(Duration::ZERO));
            let wanted = self.rules.max_peers.div_ceil(EVICTED_PART);
            let evicted = self.evict(wanted, now).await;
            // It reads all leases, so it is not repeated soon unless it freed many entries.
            let is_done = evicted.as_ref().is_ok_and(|evicted| *evicted >= wanted);
            *not_before = (!is_done).then(|| Instant::now() + pause_after_scan(start.elapsed()));
            let evicted = evicted?;
            if evicted > 0 {
                tracing::info!(peers = evicted, "table of peers full; peers that are away evicted");
            }
        }
        Ok(is_free())
    }

    /// Removes up to `wanted` peers that are away: first those that never offered a file, then those that are away for the
    /// longest time. Returns their number.
    async fn evict(&self, wanted: u64, now: UnixMillis) -> Result<u64, StorageError> {
        let mut away = Vec::new();
        let mut entries = self.storage.entries(LEASES, KeyRange::all(), PAGE);
        while let Some((key, raw)) = entries.next().await? {
            let Some((peer, record)) = self.damage.skip(read_lease(&key, &raw), now)? else { continue };
            if !self.leases.lock().is_alive(peer, &record, now) {
                away.push((record.offered, record.renewed, peer));
            }
        }
        away.sort_unstable();
        away.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        stream::iter(away)
            .map(async |(.., peer)| self.damage.skip(self.evict_peer(peer, now).await, now))
            .buffer_unordered(LIST_READS)
            .try_fold(0, async |evicted, removed| Ok(evicted + u64::from(removed.unwrap_or_default())))
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
