//! Sessions and leases in the database: hello, renew, leave, and who is alive.
//!
//! Leases that were read are remembered for a few seconds; who is not alive by what is remembered is looked up in
//! the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rand::RngExt;

use super::error::CatalogueError;
use super::layout::{self, LEASES, LeaseRecord, MAX_NUMBER, META, PEERS, PeerNumber, RECORD, SESSIONS};
use super::leases::{Flush, Renewal};
use super::{ATTEMPTS, Catalogue};
use crate::machine;
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;
use crate::protocol::lookup::EncodedPeer;
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
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub peer: PeerId,
    /// The number of that peer.
    pub number: PeerNumber,
    /// When it began: another value for each session of the peer.
    pub began: u64,
}

/// A lease that was read, and its peer as others are told of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is in the database.
    pub record: LeaseRecord,
    /// The peer and where it can be reached.
    pub encoded: EncodedPeer,
}

impl Lease {
    fn new(record: LeaseRecord) -> Arc<Self> {
        let encoded = EncodedPeer::new(&record.id, &record.endpoints);
        Arc::new(Self { record, encoded })
    }
}

/// What was read of peers lately.
#[derive(Debug, Default)]
pub(super) struct PeerCache {
    leases: HashMap<PeerNumber, (Arc<Lease>, u64)>,
    /// Whose a session is never changes, so these do not grow old.
    sessions: HashMap<SessionId, PeerNumber>,
}

/// Which of some peers are alive.
#[derive(Debug)]
pub(super) struct Living {
    /// As many as were asked about and in the same order; none for those that are not alive.
    pub(super) leases: Vec<Option<Arc<Lease>>>,
    /// Until when this holds, if nothing more is heard of any of them.
    pub(super) until: u64,
}

impl PeerCache {
    fn fresh(&self, peer: PeerNumber, now: u64, fresh: u64) -> Option<(&Arc<Lease>, u64)> {
        let (lease, read) = self.leases.get(&peer)?;
        now.checked_sub(*read).is_some_and(|age| age <= fresh).then_some((lease, *read))
    }

    /// What others are told of the peer, however old; none where it is not remembered.
    pub(super) fn lease(&self, peer: PeerNumber) -> Option<&Lease> {
        self.leases.get(&peer).map(|(lease, _)| &**lease)
    }

    fn remember(&mut self, peer: PeerNumber, lease: Arc<Lease>, now: u64, fresh: u64) {
        let record = &lease.record;
        if let Some((known, _)) = self.leases.get(&peer) {
            let known = &known.record;
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
        self.leases.insert(peer, (lease, now));
    }

    fn remember_session(&mut self, session: SessionId, peer: PeerNumber) {
        if self.sessions.len() >= MAX_REMEMBERED {
            self.sessions.clear();
        }
        self.sessions.insert(session, peer);
    }

    #[cfg(test)]
    pub(super) fn session_of(&self, peer: PeerNumber) -> SessionId {
        self.leases[&peer].0.record.session
    }

    pub(super) fn forget(&mut self, peer: PeerNumber) {
        if let Some((lease, _)) = self.leases.remove(&peer) {
            self.sessions.remove(&lease.record.session);
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
        let id_key = layout::peer_id_key(&peer);
        for _ in 0..ATTEMPTS {
            let session = SessionId(machine::rng().random());
            let known = self.read(PEERS, &id_key).await?;
            let known = known.map(|raw| layout::read_peer(PEERS, &raw)).transpose()?;
            let mut batch = Batch::new();
            let mut hello = now.min(MAX_NUMBER);
            let number = match known {
                Some(number) => {
                    let key = layout::peer_key(number);
                    // It may be taken away in this moment.
                    let Some(raw) = self.read(LEASES, &key).await? else { continue };
                    // Of one that cannot be read nothing is taken over: it is written anew.
                    let record = layout::decode::<LeaseRecord>(LEASES, &raw);
                    if let Some(record) = self.damage.pass_over(record, now)? {
                        // Sessions of one peer are told apart by when they began, whatever the clocks say.
                        hello = hello.max(record.hello.saturating_add(1).min(now.saturating_add(60_000)));
                        batch.delete(SESSIONS, layout::session_key(record.session));
                    }
                    batch.require(LEASES, key, raw);
                    number
                }
                None if self.counts.peers.load(Ordering::Relaxed) >= self.max_peers => {
                    return Err(CatalogueError::TooManyPeers);
                }
                None => {
                    let number = PeerNumber(self.next_number().await?);
                    batch.require_absent(PEERS, id_key.clone());
                    batch.put(PEERS, id_key.clone(), layout::peer_number(number));
                    number
                }
            };
            let record = LeaseRecord {
                v: RECORD,
                id: peer,
                session,
                hello,
                renewed: now,
                endpoints: endpoints.clone(),
                left: false,
                settled: false,
            };
            batch.put(LEASES, layout::peer_key(number), layout::encode(&record));
            batch.put(SESSIONS, layout::session_key(session), layout::peer_number(number));
            if !self.try_commit(batch, Durability::Buffered).await? {
                continue;
            }
            self.counts.peers.fetch_add(u64::from(known.is_none()), Ordering::Relaxed);
            self.leases.lock().reset(number, now);
            {
                let mut cache = self.cache.lock();
                cache.forget(number);
                cache.remember(number, Lease::new(record), now, self.fresh);
                cache.remember_session(session, number);
            }
            if known.is_some() {
                // It has claims, perhaps, which count again.
                self.remembered.peers_changed();
            }
            return Ok(session);
        }
        Err(CatalogueError::Conflict)
    }

    /// The session; `Unauthorized` where it is void, over or unknown.
    pub async fn authorize(&self, session: SessionId, now: u64) -> Result<Session, CatalogueError> {
        Ok(self.authorized(session, now).await?.0)
    }

    async fn authorized(
        &self,
        session: SessionId,
        now: u64,
    ) -> Result<(Session, Arc<Lease>), CatalogueError> {
        let number = self.session_peer(session).await?;
        let valid = |lease: &Arc<Lease>| {
            let LeaseRecord { id: peer, hello: began, .. } = lease.record;
            (Session { id: session, peer, number, began }, Arc::clone(lease))
        };
        if let Some((lease, _)) = self.cache.lock().fresh(number, now, self.fresh)
            && lease.record.session == session
            && !lease.record.left
        {
            return Ok(valid(lease));
        }
        match self.read_lease(number, now).await? {
            Some((record, _)) if record.session == session && !record.left => {
                let lease = Lease::new(record);
                self.cache.lock().remember(number, Arc::clone(&lease), now, self.fresh);
                Ok(valid(&lease))
            }
            _ => Err(CatalogueError::Unauthorized),
        }
    }

    /// After a conflict: `Unauthorized` where the session is no longer that of its peer.
    pub(super) async fn still_valid(&self, session: &Session) -> Result<(), CatalogueError> {
        let peer = self.read(SESSIONS, &layout::session_key(session.id)).await?;
        if peer.map(|raw| layout::read_peer(SESSIONS, &raw)).transpose()? == Some(session.number) {
            return Ok(());
        }
        self.cache.lock().forget(session.number);
        Err(CatalogueError::Unauthorized)
    }

    async fn session_peer(&self, session: SessionId) -> Result<PeerNumber, CatalogueError> {
        if let Some(peer) = self.cache.lock().sessions.get(&session) {
            return Ok(*peer);
        }
        let peer = self.read(SESSIONS, &layout::session_key(session)).await?;
        let peer = layout::read_peer(SESSIONS, &peer.ok_or(CatalogueError::Unauthorized)?)?;
        self.cache.lock().remember_session(session, peer);
        Ok(peer)
    }

    /// The lease of a peer. One that cannot be read counts as none: the peer is asked to say hello again, which writes it
    /// anew.
    async fn read_lease(
        &self,
        peer: PeerNumber,
        now: u64,
    ) -> Result<Option<(LeaseRecord, Bytes)>, StorageError> {
        let Some(raw) = self.read(LEASES, &layout::peer_key(peer)).await? else { return Ok(None) };
        let record = self.damage.pass_over(layout::decode(LEASES, &raw), now)?;
        Ok(record.map(|record| (record, raw)))
    }

    /// The session's peer lives for one more lease. Written down by the next [`Catalogue::flush`], or at once where the peer
    /// was not alive: other trackers are to know, and whoever is about to clear it away.
    pub async fn renew(&self, session: SessionId, now: u64) -> Result<Session, CatalogueError> {
        let (valid, lease) = self.authorized(session, now).await?;
        let returns = {
            let mut leases = self.leases.lock();
            let returns = !leases.is_alive(valid.number, &lease.record, now);
            leases.renew(valid.number, session, now);
            returns
        };
        if returns {
            let renewal = [(valid.number, Renewal { session, at: now })];
            let over = self.write_renewals(&renewal, now).await?;
            self.leases.lock().written(&renewal);
            if !over.is_empty() {
                return Err(CatalogueError::Unauthorized);
            }
            self.remembered.peers_changed();
        }
        Ok(valid)
    }

    /// The session's peer goes away for now, at once. Ends the session; `Unauthorized` where it was over already.
    pub async fn leave(&self, session: SessionId, now: u64) -> Result<(), CatalogueError> {
        let peer = self.session_peer(session).await?;
        let key = layout::peer_key(peer);
        for _ in 0..ATTEMPTS {
            let Some((record, raw)) = self.read_lease(peer, now).await? else {
                return Err(CatalogueError::Unauthorized);
            };
            if record.session != session || record.left {
                return Err(CatalogueError::Unauthorized);
            }
            let record = LeaseRecord { left: true, renewed: now, ..record };
            let mut batch = Batch::new();
            batch.require(LEASES, key.clone(), raw);
            batch.put(LEASES, key.clone(), layout::encode(&record));
            if self.try_commit(batch, Durability::Buffered).await? {
                self.leases.lock().reset(peer, now);
                self.cache.lock().remember(peer, Lease::new(record), now, self.fresh);
                self.remembered.peers_changed();
                return Ok(());
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Which of the peers are alive.
    pub(super) async fn living_peers(&self, peers: &[PeerNumber], now: u64) -> Result<Living, StorageError> {
        let (mut living, missing) = self.living_remembered(peers, now);
        if missing.is_empty() {
            return Ok(living);
        }
        let keys: Vec<_> = missing.iter().map(|at| layout::peer_key(peers[*at])).collect();
        let found = self.storage.get(LEASES, &keys).await?;
        let mut read = Vec::with_capacity(found.len());
        for (at, raw) in missing.into_iter().zip(found) {
            let Some(raw) = raw else { continue };
            if let Some(record) = self.damage.pass_over(layout::decode(LEASES, &raw), now)? {
                read.push((at, Lease::new(record)));
            }
        }
        let (leases, mut cache) = (self.leases.lock(), self.cache.lock());
        for (at, lease) in read {
            if let Some(until) = leases.alive_until(peers[at], &lease.record, now) {
                living.until = living.until.min(until).min(now.saturating_add(self.fresh));
                living.leases[at] = Some(Arc::clone(&lease));
                cache.remember(peers[at], lease, now, self.fresh);
            }
        }
        Ok(living)
    }

    /// Which of the peers are alive by what is remembered, and the places of those about whom the database has to be asked.
    pub(super) fn living_remembered(&self, peers: &[PeerNumber], now: u64) -> (Living, Vec<usize>) {
        let mut living = Living { leases: Vec::with_capacity(peers.len()), until: u64::MAX };
        let mut missing = Vec::new();
        let (leases, cache) = (self.leases.lock(), self.cache.lock());
        for (at, peer) in peers.iter().enumerate() {
            let alive = cache.fresh(*peer, now, self.fresh).and_then(|(lease, read)| {
                let until = leases.alive_until(*peer, &lease.record, now)?;
                Some((lease, until.min(read.saturating_add(self.fresh))))
            });
            living.leases.push(alive.map(|(lease, _)| Arc::clone(lease)));
            match alive {
                Some((_, until)) => living.until = living.until.min(until),
                None => missing.push(at),
            }
        }
        (living, missing)
    }

    /// Writes down the renewals since the last flush, and the stamp. What cannot be written comes again with the
    /// next flush. Where there is nothing to write, it looks whether the database is there: a tracker that cannot reach it
    /// must know, see [`super::leases`].
    pub async fn flush(&self, now: u64) -> Result<(), StorageError> {
        let flush = self.leases.lock().take(now);
        let flushed = match flush {
            Some(flush) => self.write(flush, now).await,
            None => self.read(META, &layout::meta_key("stamp")).await.map(drop),
        };
        match &flushed {
            Ok(()) => {
                if self.leases.lock().reached(now) {
                    tracing::info!("the database is there again");
                    self.remembered.peers_changed();
                }
            }
            // Somebody else wrote.
            Err(StorageError::Conflict) => {}
            Err(_) => self.leases.lock().missed(),
        }
        flushed
    }

    async fn write(&self, flush: Flush, now: u64) -> Result<(), StorageError> {
        let Flush { renewals, stamp } = flush;
        let mut conflicted = false;
        for chunk in renewals.chunks(FLUSH_BATCH) {
            match self.write_renewals(chunk, now).await {
                Ok(_) => self.leases.lock().written(chunk),
                // Peers of it come back elsewhere all the time. It is kept for the next time, and the others go on.
                Err(StorageError::Conflict) => conflicted = true,
                Err(error) => return Err(error),
            }
        }
        let mut batch = Batch::new();
        batch.put(META, layout::meta_key("stamp"), layout::number(stamp));
        self.storage.commit(batch, Durability::Buffered).await?;
        self.leases.lock().stamped(stamp);
        if conflicted { Err(StorageError::Conflict) } else { Ok(()) }
    }

    /// Writes renewals down where they count: returns the peers whose sessions are over. A renewal that another tracker
    /// took later stays. [`StorageError::Conflict`] where others changed the same leases again and again.
    async fn write_renewals(
        &self,
        renewals: &[(PeerNumber, Renewal)],
        now: u64,
    ) -> Result<Vec<PeerNumber>, StorageError> {
        let keys: Vec<_> = renewals.iter().map(|(peer, _)| layout::peer_key(*peer)).collect();
        for _ in 0..FLUSH_ATTEMPTS {
            let mut batch = Batch::new();
            let (mut written, mut over) = (Vec::new(), Vec::new());
            for (((peer, renewal), key), raw) in
                renewals.iter().zip(&keys).zip(self.storage.get(LEASES, &keys).await?)
            {
                let record = match &raw {
                    Some(raw) => self.damage.pass_over(layout::decode::<LeaseRecord>(LEASES, raw), now)?,
                    None => None,
                };
                let current = record.filter(|record| record.session == renewal.session && !record.left);
                let (Some(raw), Some(record)) = (raw, current) else {
                    // The next renewal looks into the database again, and leads to a new session.
                    self.cache.lock().forget(*peer);
                    over.push(*peer);
                    continue;
                };
                let impossible = self.leases.lock().is_impossible(record.renewed, now);
                if record.renewed >= renewal.at && !impossible {
                    continue;
                }
                let record = LeaseRecord { renewed: renewal.at, ..record };
                batch.require(LEASES, key.clone(), raw);
                batch.put(LEASES, key.clone(), layout::encode(&record));
                written.push((*peer, record));
            }
            if batch.is_empty() {
                return Ok(over);
            }
            if self.try_commit(batch, Durability::Buffered).await? {
                let mut cache = self.cache.lock();
                for (peer, record) in written {
                    let at = record.renewed;
                    cache.remember(peer, Lease::new(record), at, self.fresh);
                }
                return Ok(over);
            }
        }
        Err(StorageError::Conflict)
    }
}
