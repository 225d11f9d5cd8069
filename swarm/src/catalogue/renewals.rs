//! Renewals of leases and their storage.

use std::sync::Arc;

use super::access::{replace, require_same};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::gaps::TimeRecord;
use super::layout::{self, LEASES, LeaseRecord, META, PeerNumber};
use super::leases::{Flush, Renewal};
use super::peers::Session;
use enjambre_core::{Batch, Durability, Gap, SessionId, StorageError, UnixMillis};

/// The number of leases that one batch of renewals changes.
const FLUSH_BATCH: usize = 256;
/// The number of attempts of a batch of renewals before it is left to the next flush.
const FLUSH_ATTEMPTS: usize = 5;

impl Catalogue {
    /// Renews the lease of the session's peer. The next [`Catalogue::flush`] stores the renewal. If the peer was not alive,
    /// the renewal is stored at once, for other trackers and for a sweep that is about to remove the peer.
    pub async fn renew(&self, session: SessionId, now: UnixMillis) -> Result<Session, CatalogueError> {
        let (valid, lease) = self.authorized(session, now).await?;
        let returns = {
            let mut leases = self.leases.lock();
            let returns = !leases.is_alive(valid.number, &lease, now);
            leases.renew(valid.number, session, now);
            returns
        };
        if returns {
            let renewal = [(valid.number, Renewal { session, at: now })];
            let ended = self.write_renewals(&renewal, now).await?;
            self.leases.lock().written(&renewal);
            if !ended.is_empty() {
                return Err(CatalogueError::Unauthorized);
            }
            self.liveness_changed();
        }
        Ok(valid)
    }

    /// The periods whose acknowledged writes the database may lack.
    pub fn gaps(&self) -> Vec<Gap> {
        self.gaps.lock().list().to_vec()
    }

    /// Stores the renewals since the last flush, and the stamp. Renewals that cannot be stored remain for the next flush.
    /// Without renewals it only checks that the database is reachable, because the lease rules depend on that, see
    /// [`super::leases`].
    pub async fn flush(&self, now: UnixMillis) -> Result<(), StorageError> {
        let flush = self.leases.lock().take(now);
        let flushed = self.try_flush(flush, now).await;
        match &flushed {
            Ok(()) => {
                if self.leases.lock().reached(now) {
                    tracing::info!("database reachable again");
                    self.liveness_changed();
                }
            }
            // The database is reachable: another tracker wrote.
            Err(StorageError::Conflict) => {}
            Err(_) => self.leases.lock().missed(),
        }
        flushed
    }

    async fn try_flush(&self, flush: Option<Flush>, now: UnixMillis) -> Result<(), StorageError> {
        let is_due = flush.is_some();
        let flushed = match flush {
            Some(flush) => self.write_flush(flush, now).await,
            None => Ok(()),
        };
        if !matches!(flushed, Ok(()) | Err(StorageError::Conflict)) {
            return flushed;
        }
        let key = layout::meta_key("time");
        let raw = self.read(META, &key).await?;
        let stored = raw.as_ref().map(|raw| layout::decode::<TimeRecord>(META, raw)).transpose();
        let stored = self.damage.skip(stored, now)?.flatten().unwrap_or_default();
        let is_back = self.leases.lock().is_away();
        let record = self.gaps.lock().update(&stored, is_back, now);
        if is_due || record.gaps != stored.gaps {
            let mut batch = Batch::new();
            require_same(&mut batch, META, key.clone(), raw);
            batch.put(META, key, layout::encode(&record));
            // After a conflict the time is that of another tracker, and a new gap is left to the next flush.
            if self.try_commit(batch, Durability::Buffered).await? {
                self.gaps.lock().stored(&record);
            }
        }
        flushed
    }

    async fn write_flush(&self, flush: Flush, now: UnixMillis) -> Result<(), StorageError> {
        let Flush { renewals, stamp } = flush;
        let mut conflicted = false;
        for chunk in renewals.chunks(FLUSH_BATCH) {
            match self.write_renewals(chunk, now).await {
                Ok(_) => self.leases.lock().written(chunk),
                // Peers of this chunk keep returning at other trackers. It is left to the next flush.
                Err(StorageError::Conflict) => conflicted = true,
                Err(error) => return Err(error),
            }
        }
        let mut batch = Batch::new();
        batch.put(META, layout::meta_key("stamp"), layout::number(stamp.get()));
        self.storage.commit(batch, Durability::Buffered).await?;
        self.leases.lock().stamped(stamp);
        if conflicted { Err(StorageError::Conflict) } else { Ok(()) }
    }

    /// Stores renewals of current sessions and returns the peers whose sessions ended. A later renewal of another tracker is
    /// kept. [`StorageError::Conflict`] if the leases changed during each attempt.
    async fn write_renewals(
        &self,
        renewals: &[(PeerNumber, Renewal)],
        now: UnixMillis,
    ) -> Result<Vec<PeerNumber>, StorageError> {
        let keys: Vec<_> = renewals.iter().map(|(peer, _)| layout::peer_key(*peer)).collect();
        for _ in 0..FLUSH_ATTEMPTS {
            let mut batch = Batch::new();
            let (mut written, mut ended) = (Vec::new(), Vec::new());
            for (((peer, renewal), key), raw) in
                renewals.iter().zip(&keys).zip(self.storage.get(LEASES, &keys).await?)
            {
                let read = raw.as_ref().map(|raw| layout::decode::<LeaseRecord>(LEASES, raw)).transpose();
                let record = self.damage.skip(read, now)?.flatten();
                let current = record.filter(|record| record.session == renewal.session && !record.left);
                let (Some(raw), Some(record)) = (raw, current) else {
                    // The next renewal reads the database, which leads to a new session.
                    self.cache.lock().remove_lease(*peer);
                    ended.push(*peer);
                    continue;
                };
                let impossible = self.leases.lock().is_impossible(record.renewed, now);
                if record.renewed >= renewal.at && !impossible {
                    continue;
                }
                let record = LeaseRecord { renewed: renewal.at, ..record };
                replace(&mut batch, LEASES, key.clone(), raw, &record);
                written.push((*peer, record));
            }
            if batch.is_empty() {
                return Ok(ended);
            }
            if self.try_commit(batch, Durability::Buffered).await? {
                let mut cache = self.cache.lock();
                for (peer, record) in written {
                    let at = record.renewed;
                    cache.insert_lease(peer, Arc::new(record), at, self.rules.cache_ttl);
                }
                return Ok(ended);
            }
        }
        Err(StorageError::Conflict)
    }
}
