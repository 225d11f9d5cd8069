//! Sessions of peers, and whether peers are alive.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;

use super::access::{ATTEMPTS, replace};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, Claim, LEASES, LeaseRecord, MAX_NUMBER, PEERS, PeerNumber, SESSIONS};
use enjambre_core::runtime;
use enjambre_core::{Batch, Durability, Endpoint, Key, PeerId, SessionId, Space, StorageError, UnixMillis};

/// Whether a requester with this address runs on this host.
pub(crate) fn is_local(requester: Option<IpAddr>) -> bool {
    requester.is_none_or(|address| address.to_canonical().is_loopback())
}

/// A valid session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The id of the session.
    pub id: SessionId,
    /// The peer.
    pub peer: PeerId,
    /// The number of the peer.
    pub number: PeerNumber,
    /// The start time, unique among the sessions of the peer.
    pub began: UnixMillis,
    /// Whether it is valid only on connections that authenticate the peer.
    pub authenticated: bool,
    /// Whether the lease shows that the peer has offered a file.
    pub(super) offered: bool,
}

/// The properties of a new session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSession {
    /// The endpoints that other peers receive.
    pub announced: Vec<Endpoint>,
    /// The endpoints that the peer requested, if they differ.
    pub requested: Vec<Endpoint>,
    /// Whether it is valid only on connections that authenticate the peer.
    pub authenticated: bool,
}

impl From<Vec<Endpoint>> for NewSession {
    fn from(announced: Vec<Endpoint>) -> Self {
        Self { announced, ..Self::default() }
    }
}

/// The leases of the living ones among some peers.
#[derive(Debug)]
pub struct AlivePeers {
    /// One element for each peer, in the order of the request: its lease, or `None` if the peer is not alive.
    pub leases: Vec<Option<Arc<LeaseRecord>>>,
    /// The time until which this is valid without further events.
    pub until: UnixMillis,
}

impl AlivePeers {
    /// The number of peers that are alive, that the requester can reach, and that have the whole file. The claims are those of
    /// the peers of the request.
    pub fn complete_providers(&self, claims: &[(PeerNumber, Claim)], is_local: bool) -> usize {
        let leases = self.leases.iter().zip(claims);
        let complete =
            leases.filter(|(_, (_, claim))| claim.complete).filter_map(|(lease, _)| lease.as_ref());
        complete.filter(|lease| lease.is_reachable(is_local)).count()
    }
}

impl Catalogue {
    /// Opens a session of an authenticated peer and voids its earlier sessions.
    pub async fn open_session(
        &self,
        peer: PeerId,
        new: impl Into<NewSession>,
        now: UnixMillis,
    ) -> Result<SessionId, CatalogueError> {
        let NewSession { announced: endpoints, requested, authenticated } = new.into();
        let id_key = layout::peer_id_key(&peer);
        for _ in 0..ATTEMPTS {
            let session = SessionId(runtime::rng().random());
            let known = self.peer_number(PEERS, &id_key).await?;
            let mut batch = Batch::new();
            let (mut began, mut offered) = (now.min(UnixMillis(MAX_NUMBER)), false);
            let number = match known {
                Some(number) => {
                    let key = layout::peer_key(number);
                    // A sweep may be removing the peer at this moment.
                    let Some(raw) = self.read(LEASES, &key).await? else { continue };
                    // A damaged lease is replaced.
                    let record = layout::decode::<LeaseRecord>(LEASES, &raw);
                    if let Some(record) = self.damage.skip(record, now)? {
                        // Sessions of a peer are distinguished by their start time, whatever the clocks of trackers show.
                        began = began.max(
                            (record.began + Duration::from_millis(1)).min(now + Duration::from_secs(60)),
                        );
                        batch.delete(SESSIONS, layout::session_key(record.session));
                        offered = record.offered;
                    }
                    batch.require(LEASES, key, raw);
                    number
                }
                None if !self.has_free_entry(now).await? => return Err(CatalogueError::TooManyPeers),
                None => {
                    let number = PeerNumber(self.next_number().await?);
                    batch.require_absent(PEERS, id_key.clone());
                    batch.put(PEERS, id_key.clone(), layout::peer_number(number));
                    number
                }
            };
            let record = LeaseRecord {
                id: peer,
                session,
                began,
                renewed: now,
                endpoints: endpoints.clone(),
                requested: requested.clone(),
                authenticated,
                offered,
                left: false,
                settled: false,
            };
            batch.put(LEASES, layout::peer_key(number), layout::encode(&record));
            batch.put(SESSIONS, layout::session_key(session), layout::peer_number(number));
            if !self.try_commit(batch, Durability::Buffered).await? {
                continue;
            }
            self.peer_count.fetch_add(u64::from(known.is_none()), Ordering::Relaxed);
            self.leases.lock().reset(number, now);
            {
                let mut cache = self.cache.lock();
                cache.remove_lease(number);
                cache.insert_lease(number, Arc::new(record), now, self.rules.cache_ttl);
                cache.insert_session(session, number);
            }
            if known.is_some() {
                // Its earlier claims count again.
                self.liveness_changed();
            }
            return Ok(session);
        }
        Err(CatalogueError::Conflict)
    }

    /// Returns the session.
    ///
    /// # Errors
    /// [`CatalogueError::Unauthorized`] if the session is void, expired or unknown. [`CatalogueError::Replaced`] if it was used
    /// recently and is void because of a newer one.
    pub async fn authorize(&self, session: SessionId, now: UnixMillis) -> Result<Session, CatalogueError> {
        Ok(self.authorized(session, now).await?.0)
    }

    /// Returns the lease of the session's peer.
    pub async fn lease(&self, by: &Session, now: UnixMillis) -> Result<Arc<LeaseRecord>, CatalogueError> {
        Ok(self.authorized(by.id, now).await?.1)
    }

    /// Replaces the endpoints that other peers receive.
    pub async fn set_endpoints(
        &self,
        by: &Session,
        endpoints: &[Endpoint],
        now: UnixMillis,
    ) -> Result<(), CatalogueError> {
        let key = layout::peer_key(by.number);
        for _ in 0..ATTEMPTS {
            let (record, raw) = match self.read_lease(by.number, now).await? {
                Some((record, raw)) if record.session == by.id && !record.left => (record, raw),
                _ => return Err(CatalogueError::Unauthorized),
            };
            let record = LeaseRecord { endpoints: endpoints.to_vec(), ..record };
            let mut batch = Batch::new();
            replace(&mut batch, LEASES, key.clone(), raw, &record);
            if self.try_commit(batch, Durability::Buffered).await? {
                self.cache.lock().insert_lease(by.number, Arc::new(record), now, self.rules.cache_ttl);
                self.liveness_changed();
                return Ok(());
            }
        }
        Err(CatalogueError::Conflict)
    }

    pub(super) async fn authorized(
        &self,
        session: SessionId,
        now: UnixMillis,
    ) -> Result<(Session, Arc<LeaseRecord>), CatalogueError> {
        let number = self.session_peer(session).await?;
        let valid = |lease: Arc<LeaseRecord>| {
            let LeaseRecord { id: peer, began, authenticated, offered, .. } = *lease;
            (Session { id: session, peer, number, began, authenticated, offered }, lease)
        };
        let ttl = self.rules.cache_ttl;
        if let Some((lease, _)) = self.cache.lock().lease(number, now, ttl)
            && lease.session == session
            && !lease.left
        {
            return Ok(valid(Arc::clone(lease)));
        }
        match self.read_lease(number, now).await? {
            Some((record, _)) if record.session == session && !record.left => {
                let lease = Arc::new(record);
                self.cache.lock().insert_lease(number, Arc::clone(&lease), now, ttl);
                Ok(valid(lease))
            }
            // A peer that restarts does not use its earlier session.
            Some((record, _)) if record.session != session && !record.left => Err(CatalogueError::Replaced),
            _ => Err(CatalogueError::Unauthorized),
        }
    }

    /// Checks after a conflict that the session is still that of its peer.
    pub(super) async fn check_session(&self, session: &Session) -> Result<(), CatalogueError> {
        let peer = self.peer_number(SESSIONS, &layout::session_key(session.id)).await?;
        if peer == Some(session.number) {
            return Ok(());
        }
        self.cache.lock().remove_lease(session.number);
        Err(CatalogueError::Unauthorized)
    }

    async fn session_peer(&self, session: SessionId) -> Result<PeerNumber, CatalogueError> {
        if let Some(peer) = self.cache.lock().session_peer(session) {
            return Ok(peer);
        }
        let peer = self.peer_number(SESSIONS, &layout::session_key(session)).await?;
        let peer = peer.ok_or(CatalogueError::Unauthorized)?;
        self.cache.lock().insert_session(session, peer);
        Ok(peer)
    }

    /// Reads an entry of `peers` or `sessions`.
    pub(super) async fn peer_number(
        &self,
        space: Space,
        key: &Key,
    ) -> Result<Option<PeerNumber>, StorageError> {
        let raw = self.read(space, key).await?;
        raw.map(|raw| layout::read_peer(space, &raw)).transpose()
    }

    /// Reads the lease of a peer. A damaged lease counts as absent: the peer has to open a new session, which replaces it.
    pub(super) async fn read_lease(
        &self,
        peer: PeerNumber,
        now: UnixMillis,
    ) -> Result<Option<(LeaseRecord, Bytes)>, StorageError> {
        let Some(raw) = self.read(LEASES, &layout::peer_key(peer)).await? else { return Ok(None) };
        let record = self.damage.skip(layout::decode(LEASES, &raw), now)?;
        Ok(record.map(|record| (record, raw)))
    }

    /// Ends the session; its peer is away at once.
    ///
    /// # Errors
    /// [`CatalogueError::Unauthorized`] if the session had ended already.
    pub async fn leave(&self, session: SessionId, now: UnixMillis) -> Result<(), CatalogueError> {
        let peer = self.session_peer(session).await?;
        let ended = self.end_session(peer, Some(session), now).await?;
        if ended { Ok(()) } else { Err(CatalogueError::Unauthorized) }
    }

    /// Ends the session of a peer. With `leaves`, its peer ends it, and it must be this session. Returns `false` if there is no
    /// such session.
    pub(super) async fn end_session(
        &self,
        peer: PeerNumber,
        leaves: Option<SessionId>,
        now: UnixMillis,
    ) -> Result<bool, CatalogueError> {
        let key = layout::peer_key(peer);
        for _ in 0..ATTEMPTS {
            let Some((record, raw)) = self.read_lease(peer, now).await? else { return Ok(false) };
            if leaves.is_some_and(|session| session != record.session || record.left) {
                return Ok(false);
            }
            let mut batch = Batch::new();
            batch.delete(SESSIONS, layout::session_key(record.session));
            let (renewed, durability) = match leaves {
                Some(_) => (now, Durability::Buffered),
                None => (record.renewed, Durability::Durable),
            };
            let record = LeaseRecord { left: true, renewed, ..record };
            replace(&mut batch, LEASES, key.clone(), raw, &record);
            if self.try_commit(batch, durability).await? {
                self.leases.lock().reset(peer, now);
                self.cache.lock().insert_lease(peer, Arc::new(record), now, self.rules.cache_ttl);
                self.liveness_changed();
                return Ok(true);
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Returns the leases of those of the peers that are alive.
    pub async fn alive_peers(
        &self,
        peers: &[PeerNumber],
        now: UnixMillis,
    ) -> Result<AlivePeers, StorageError> {
        let (mut alive, missing) = self.alive_in_cache(peers, now);
        if missing.is_empty() {
            return Ok(alive);
        }
        let keys: Vec<_> = missing.iter().map(|at| layout::peer_key(peers[*at])).collect();
        let found = self.storage.get(LEASES, &keys).await?;
        let mut read = Vec::with_capacity(found.len());
        for (at, raw) in missing.into_iter().zip(found) {
            let Some(raw) = raw else { continue };
            if let Some(record) = self.damage.skip(layout::decode(LEASES, &raw), now)? {
                read.push((at, Arc::<LeaseRecord>::new(record)));
            }
        }
        let ttl = self.rules.cache_ttl;
        let (leases, mut cache) = (self.leases.lock(), self.cache.lock());
        for (at, lease) in read {
            if let Some(until) = leases.alive_until(peers[at], &lease, now) {
                alive.until = alive.until.min(until).min(now + ttl);
                alive.leases[at] = Some(Arc::clone(&lease));
                cache.insert_lease(peers[at], lease, now, ttl);
            }
        }
        Ok(alive)
    }

    /// As [`Catalogue::alive_peers`], or `None` if that has to read the database.
    pub fn cached_alive_peers(&self, peers: &[PeerNumber], now: UnixMillis) -> Option<AlivePeers> {
        let (alive, missing) = self.alive_in_cache(peers, now);
        missing.is_empty().then_some(alive)
    }

    /// Returns the peers that are alive according to the cache, and the indices of all other peers.
    fn alive_in_cache(&self, peers: &[PeerNumber], now: UnixMillis) -> (AlivePeers, Vec<usize>) {
        let ttl = self.rules.cache_ttl;
        let mut alive = AlivePeers { leases: Vec::with_capacity(peers.len()), until: UnixMillis(u64::MAX) };
        let mut missing = Vec::new();
        let (leases, cache) = (self.leases.lock(), self.cache.lock());
        for (at, peer) in peers.iter().enumerate() {
            let found = cache.lease(*peer, now, ttl).and_then(|(lease, read)| {
                let until = leases.alive_until(*peer, lease, now)?;
                Some((lease, until.min(read + ttl)))
            });
            alive.leases.push(found.map(|(lease, _)| Arc::clone(lease)));
            match found {
                Some((_, until)) => alive.until = alive.until.min(until),
                None => missing.push(at),
            }
        }
        (alive, missing)
    }
}
