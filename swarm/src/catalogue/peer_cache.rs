//! A cache of leases and sessions that were read or written recently.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::layout::{LeaseRecord, PeerNumber};
use enjambre_core::{SessionId, UnixMillis};

/// The number of cached leases, and of cached sessions.
const CAPACITY: usize = 16_384;

/// A cache of leases and sessions.
#[derive(Debug, Default)]
pub(super) struct PeerCache {
    /// Each with the time of the read.
    leases: HashMap<PeerNumber, (Arc<LeaseRecord>, UnixMillis)>,
    /// The peer of a session never changes, so these entries do not expire.
    sessions: HashMap<SessionId, PeerNumber>,
}

impl PeerCache {
    /// Returns a lease that was read at most `ttl` ago, and the time of the read.
    pub(super) fn lease(
        &self,
        peer: PeerNumber,
        now: UnixMillis,
        ttl: Duration,
    ) -> Option<(&Arc<LeaseRecord>, UnixMillis)> {
        let (lease, read) = self.leases.get(&peer)?;
        now.checked_since(*read).is_some_and(|age| age <= ttl).then_some((lease, *read))
    }

    pub(super) fn insert_lease(
        &mut self,
        peer: PeerNumber,
        lease: Arc<LeaseRecord>,
        now: UnixMillis,
        ttl: Duration,
    ) {
        if let Some((cached, _)) = self.leases.get(&peer) {
            // A read that started before the session was opened or left must not undo the change.
            let same = cached.session == lease.session;
            if cached.began > lease.began || (same && cached.left && !lease.left) {
                return;
            }
        } else if self.leases.len() >= CAPACITY {
            self.leases.retain(|_, (_, read)| now.saturating_since(*read) <= ttl);
            if self.leases.len() >= CAPACITY {
                self.leases.clear();
            }
        }
        self.leases.insert(peer, (lease, now));
    }

    pub(super) fn session_peer(&self, session: SessionId) -> Option<PeerNumber> {
        self.sessions.get(&session).copied()
    }

    pub(super) fn insert_session(&mut self, session: SessionId, peer: PeerNumber) {
        if self.sessions.len() >= CAPACITY {
            self.sessions.clear();
        }
        self.sessions.insert(session, peer);
    }

    /// Removes the lease of the peer. Its session is kept, so that a later use shows that it was replaced.
    pub(super) fn remove_lease(&mut self, peer: PeerNumber) {
        self.leases.remove(&peer);
    }

    /// Removes the lease of the peer and its session.
    pub(super) fn remove(&mut self, peer: PeerNumber) {
        if let Some((lease, _)) = self.leases.remove(&peer) {
            self.sessions.remove(&lease.session);
        }
    }

    #[cfg(test)]
    pub(super) fn session_of(&self, peer: PeerNumber) -> SessionId {
        self.leases[&peer].0.session
    }
}
