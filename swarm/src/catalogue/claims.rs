//! Writes of claims, which always change `providers` and `offers` together.

use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;

use super::access::replace;
use super::catalogue::Catalogue;
use super::layout::{
    self, CLEARED, Claim, FileNumber, LEASES, LeaseRecord, OFFERS, PROVIDERS, PeerNumber, SESSIONS,
};
use super::peers::Session;
use enjambre_core::runtime;
use enjambre_core::{Batch, Space, StorageError, UnixMillis};

/// Requires that the session is valid. Every batch that adds or deletes claims of a session needs it, because claims of a
/// peer that was removed meanwhile would never be deleted.
pub(super) fn require_session(batch: &mut Batch, by: &Session) {
    batch.require(SESSIONS, layout::session_key(by.id), layout::peer_number(by.number));
}

impl Catalogue {
    /// As [`require_session`], for a batch that adds claims. The first one also records in the lease that the peer has offered
    /// a file, which protects the peer from eviction. Returns the changed lease for [`Catalogue::cache_offering`].
    pub(super) async fn require_offering_session(
        &self,
        batch: &mut Batch,
        by: &Session,
        now: UnixMillis,
    ) -> Result<Option<LeaseRecord>, StorageError> {
        require_session(batch, by);
        if !by.offered
            && let Some((record, raw)) = self.read_lease(by.number, now).await?
            && !record.offered
        {
            let record = LeaseRecord { offered: true, ..record };
            replace(batch, LEASES, layout::peer_key(by.number), raw, &record);
            return Ok(Some(record));
        }
        Ok(None)
    }

    /// Caches the lease once the batch is committed, so that later batches need not read it.
    pub(super) fn cache_offering(&self, by: &Session, lease: Option<LeaseRecord>, now: UnixMillis) {
        if let Some(lease) = lease {
            self.cache.lock().insert_lease(by.number, Arc::new(lease), now, self.rules.cache_ttl);
        }
    }
}

pub(super) fn put_claim(batch: &mut Batch, by: &Session, file: FileNumber, claim: Claim) {
    batch.put(PROVIDERS, layout::provider_key(file, by.number), claim.encode());
    batch.put(OFFERS, layout::offer_key(by.number, file), claim.encode_offer(by.began));
}

pub(super) fn delete_claim(batch: &mut Batch, peer: PeerNumber, file: FileNumber) {
    batch.delete(PROVIDERS, layout::provider_key(file, peer));
    batch.delete(OFFERS, layout::offer_key(peer, file));
}

/// Marks that claims of the peer are deleted. Every batch that deletes claims needs it, so that a concurrent announcement that
/// found a claim unchanged, and therefore does not write it, conflicts.
pub(super) fn mark_cleared(batch: &mut Batch, peer: PeerNumber) {
    batch.put(CLEARED, layout::peer_key(peer), Bytes::copy_from_slice(&runtime::rng().random::<[u8; 8]>()));
}

/// Entries of one space that are added to a batch together. They are many and small, so they share one allocation.
#[derive(Debug, Default)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    /// Start and end of each value.
    values: Vec<(usize, usize)>,
}

impl Entries {
    pub(super) fn add(&mut self, key: [u8; 12], write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.extend(key);
        let value = self.bytes.len();
        write(&mut self.bytes);
        self.values.push((value, self.bytes.len()));
    }

    pub(super) fn put_into(self, space: Space, batch: &mut Batch) {
        let bytes = Bytes::from(self.bytes);
        let mut begin = 0;
        for (value, end) in self.values {
            batch.put(space, layout::key_of(bytes.slice(begin..value)), bytes.slice(value..end));
            begin = end;
        }
    }
}
