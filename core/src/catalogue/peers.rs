//! Sessions and leases in the database: hello, renew, leave, and who is alive.
//!
//! Leases that were read are remembered for a few seconds; who is not alive by what is remembered is looked up in
//! the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::error::CatalogueError;
use super::layout::{self, LEASES, LeaseRecord, META, RECORD, SESSIONS};
use super::leases::{Flush, Renewal};
use super::{ATTEMPTS, Catalogue};
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;
use crate::protocol::message::SessionId;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};

/// How many leases and sessions are remembered.
const MAX_REMEMBERED: usize = 16_384;
/// How many leases one batch of renewals changes.
const FLUSH_BATCH: usize = 256;
/// How often a batch of renewals is tried anew before it is left to the next flush.
const FLUSH_ATTEMPTS: usize = 5;

/// A valid session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Whose it is.
    pub peer: PeerId,
    /// When it began: another value for each session of the peer.
    pub began: u64,
}

/// What was read of peers lately.
#[derive(Debug, Default)]
pub(super) struct PeerCache {
    leases: HashMap<PeerId, (Arc<LeaseRecord>, u64)>,
    /// Whose a session is never changes, so these do not grow old.
    sessions: HashMap<SessionId, PeerId>,
}

impl PeerCache {
    fn fresh(&self, peer: &PeerId, now: u64, fresh: u64) -> Option<&Arc<LeaseRecord>> {
        let (record, read) = self.leases.get(peer)?;
        now.checked_sub(*read).is_some_and(|age| age <= fresh).then_some(record)
    }

    fn remember(&mut self, peer: PeerId, record: Arc<LeaseRecord>, now: u64, fresh: u64) {
        if let Some((known, _)) = self.leases.get(&peer) {
            // A look-up that began before a hello or leave must not undo it.
            let same = known.session == record.session;
            if known.hello > record.hello || (same && known.left && !record.left) {
                return;
            }
        } else if self.leases.len() >= MAX_REMEMBERED {
            self.leases.retain(|_, (_, read)| now.saturating_sub(*read) <= fresh);
            if self.leases.len() >= MAX_REMEMBERED {
                self.leases.clear();
            }
        }
        self.leases.insert(peer, (record, now));
    }

    fn remember_session(&mut self, session: SessionId, peer: PeerId) {
        if self.sessions.len() >= MAX_REMEMBERED {
            self.sessions.clear();
        }
        self.sessions.insert(session, peer);
    }

    #[cfg(test)]
    pub(super) fn session_of(&self, peer: &PeerId) -> SessionId {
        self.leases[peer].0.session
    }

    pub(super) fn forget(&mut self, peer: &PeerId) {
        if let Some((record, _)) = self.leases.remove(peer) {
            self.sessions.remove(&record.session);
        }
    }
}

impl Catalogue {
    /// Begins a session of the peer, which has proven who it is, and voids its older ones.
    pub async fn hello(
        &self,
        peer: PeerId,
        endpoints: Vec<Endpoint>,
        now: u64,
    ) -> Result<SessionId, CatalogueError> {
        for _ in 0..ATTEMPTS {
            let session = SessionId(rand::random());
            let key = layout::lease_key(&peer);
            let old = self.read(LEASES, &key).await?;
            let mut batch = Batch::new();
            let mut hello = now;
            match &old {
                Some(raw) => {
                    let record: LeaseRecord = layout::decode(LEASES, raw)?;
                    // Sessions of one peer are told apart by when they began, whatever the clocks say.
                    hello = now.max(record.hello.saturating_add(1).min(now.saturating_add(60_000)));
                    batch.require(LEASES, key.clone(), raw.clone());
                    batch.delete(SESSIONS, layout::session_key(record.session));
                }
                None if self.counts.peers.load(Ordering::Relaxed) >= self.max_peers => {
                    return Err(CatalogueError::TooManyPeers);
                }
                None => {
                    batch.require_absent(LEASES, key.clone());
                }
            }
            let record = LeaseRecord {
                v: RECORD,
                session,
                hello,
                renewed: now,
                endpoints: endpoints.clone(),
                left: false,
                settled: false,
            };
            batch.put(LEASES, key, layout::encode(&record));
            batch.put(SESSIONS, layout::session_key(session), Bytes::copy_from_slice(peer.as_bytes()));
            if !self.try_commit(batch, Durability::Buffered).await? {
                continue;
            }
            self.counts.peers.fetch_add(u64::from(old.is_none()), Ordering::Relaxed);
            self.leases.lock().reset(&peer, now);
            let mut cache = self.cache.lock();
            cache.forget(&peer);
            cache.remember(peer, Arc::new(record), now, self.fresh);
            cache.remember_session(session, peer);
            return Ok(session);
        }
        Err(CatalogueError::Conflict)
    }

    /// The session; `Unauthorized` where it is void, over or unknown.
    pub async fn authorize(&self, session: SessionId, now: u64) -> Result<Session, CatalogueError> {
        let peer = self.session_peer(session).await?;
        if let Some(record) = self.cache.lock().fresh(&peer, now, self.fresh)
            && record.session == session
            && !record.left
        {
            return Ok(Session { peer, began: record.hello });
        }
        match self.read_lease(&peer).await? {
            Some((record, _)) if record.session == session && !record.left => {
                let began = record.hello;
                self.cache.lock().remember(peer, Arc::new(record), now, self.fresh);
                Ok(Session { peer, began })
            }
            _ => Err(CatalogueError::Unauthorized),
        }
    }

    async fn session_peer(&self, session: SessionId) -> Result<PeerId, CatalogueError> {
        if let Some(peer) = self.cache.lock().sessions.get(&session) {
            return Ok(*peer);
        }
        let peer = self.read(SESSIONS, &layout::session_key(session)).await?;
        let peer = layout::read_peer(SESSIONS, &peer.ok_or(CatalogueError::Unauthorized)?)?;
        self.cache.lock().remember_session(session, peer);
        Ok(peer)
    }

    async fn read_lease(&self, peer: &PeerId) -> Result<Option<(LeaseRecord, Bytes)>, StorageError> {
        let raw = self.read(LEASES, &layout::lease_key(peer)).await?;
        raw.map(|raw| Ok((layout::decode(LEASES, &raw)?, raw))).transpose()
    }

    /// The session's peer lives for one more lease. Written down by the next [`Catalogue::flush`].
    pub async fn renew(&self, session: SessionId, now: u64) -> Result<Session, CatalogueError> {
        let valid = self.authorize(session, now).await?;
        self.leases.lock().renew(valid.peer, session, now);
        Ok(valid)
    }

    /// The session's peer goes away for now, at once. Ends the session; `Unauthorized` where it was over already.
    pub async fn leave(&self, session: SessionId, now: u64) -> Result<(), CatalogueError> {
        let peer = self.session_peer(session).await?;
        for _ in 0..ATTEMPTS {
            let Some((record, raw)) = self.read_lease(&peer).await? else {
                return Err(CatalogueError::Unauthorized);
            };
            if record.session != session || record.left {
                return Err(CatalogueError::Unauthorized);
            }
            let key = layout::lease_key(&peer);
            let record = LeaseRecord { left: true, renewed: now, ..record };
            let mut batch = Batch::new();
            batch.require(LEASES, key.clone(), raw);
            batch.put(LEASES, key, layout::encode(&record));
            if self.try_commit(batch, Durability::Buffered).await? {
                self.leases.lock().reset(&peer, now);
                self.cache.lock().remember(peer, Arc::new(record), now, self.fresh);
                return Ok(());
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Those of the peers that are alive.
    pub(super) async fn living_peers(
        &self,
        peers: &[PeerId],
        now: u64,
    ) -> Result<HashMap<PeerId, Arc<LeaseRecord>>, StorageError> {
        let mut living = HashMap::with_capacity(peers.len());
        let mut missing = Vec::new();
        {
            let (leases, cache) = (self.leases.lock(), self.cache.lock());
            for peer in peers {
                match cache.fresh(peer, now, self.fresh) {
                    Some(record) if leases.is_alive(peer, record, now) => {
                        living.insert(*peer, Arc::clone(record));
                    }
                    _ => missing.push(*peer),
                }
            }
        }
        if missing.is_empty() {
            return Ok(living);
        }
        let keys: Vec<_> = missing.iter().map(layout::lease_key).collect();
        let found = self.storage.get(LEASES, &keys).await?;
        let mut records = Vec::with_capacity(found.len());
        for (peer, raw) in missing.into_iter().zip(found) {
            if let Some(raw) = raw {
                records.push((peer, Arc::new(layout::decode::<LeaseRecord>(LEASES, &raw)?)));
            }
        }
        let (leases, mut cache) = (self.leases.lock(), self.cache.lock());
        for (peer, record) in records {
            if leases.is_alive(&peer, &record, now) {
                living.insert(peer, Arc::clone(&record));
                cache.remember(peer, record, now, self.fresh);
            }
        }
        Ok(living)
    }

    /// Writes down the renewals since the last flush, and the stamp. What cannot be written comes again with the
    /// next flush.
    pub async fn flush(&self, now: u64) -> Result<(), StorageError> {
        let Some(Flush { renewals, stamp }) = self.leases.lock().take(now) else { return Ok(()) };
        for chunk in renewals.chunks(FLUSH_BATCH) {
            self.write_renewals(chunk).await?;
            self.leases.lock().written(chunk);
        }
        let mut batch = Batch::new();
        batch.put(META, layout::meta_key("stamp"), layout::number(stamp));
        self.storage.commit(batch, Durability::Buffered).await?;
        self.leases.lock().stamped(stamp);
        Ok(())
    }

    async fn write_renewals(&self, renewals: &[(PeerId, Renewal)]) -> Result<(), StorageError> {
        let keys: Vec<_> = renewals.iter().map(|(peer, _)| layout::lease_key(peer)).collect();
        for _ in 0..FLUSH_ATTEMPTS {
            let mut batch = Batch::new();
            let mut written = Vec::new();
            for (((peer, renewal), key), raw) in
                renewals.iter().zip(&keys).zip(self.storage.get(LEASES, &keys).await?)
            {
                let Some(raw) = raw else { continue };
                let record: LeaseRecord = layout::decode(LEASES, &raw)?;
                // Another session began or this one was left: its renewals no longer count.
                if record.session != renewal.session || record.left || record.renewed == renewal.at {
                    continue;
                }
                let record = LeaseRecord { renewed: renewal.at, ..record };
                batch.require(LEASES, key.clone(), raw);
                batch.put(LEASES, key.clone(), layout::encode(&record));
                written.push((*peer, record));
            }
            if batch.is_empty() {
                return Ok(());
            }
            if self.try_commit(batch, Durability::Buffered).await? {
                let mut cache = self.cache.lock();
                for (peer, record) in written {
                    let at = record.renewed;
                    cache.remember(peer, Arc::new(record), at, self.fresh);
                }
                return Ok(());
            }
        }
        Err(StorageError::Conflict)
    }
}
