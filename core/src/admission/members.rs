//! What a node knows of the swarm that it is in: its own membership, who was thrown out, and who was let in here.
//!
//! It asks nobody: a node that is cut off from all trackers goes on letting in whoever has a membership that did not end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::timeout;

use super::admitted::{Admitted, Guest};
use super::kept::Kept;
use crate::clock::Clock;
use crate::model::id::PeerId;
use crate::model::identity::PublicKey;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::KnownSwarm;
use crate::storage::error::StorageError;
use crate::swarm::membership::{Invalid, Membership, SKEW_MS, SignedMembership};
use crate::swarm::revocations::Revocations;
use crate::transport::{ConnectionId, PeerInfo};

/// How often a connection may show what is not accepted before it is no longer looked at: a signature takes time to check.
const MAX_FAILURES: u32 = 3;
/// Of how many connections the failures are remembered.
const MAX_STRANGERS: usize = 4096;

/// The swarm of a node.
#[derive(Debug)]
pub struct Members {
    authority: PublicKey,
    me: PeerId,
    clock: Arc<dyn Clock>,
    kept: Option<Kept>,
    own: watch::Sender<Option<(SignedMembership, Membership)>>,
    revoked: RwLock<Revocations>,
    /// Another number for each list of revocations.
    generation: AtomicU64,
    admitted: Mutex<Admitted>,
    strangers: Mutex<BTreeMap<ConnectionId, u32>>,
}

impl Members {
    /// The swarm of this authority, as the node `me` knows it: nothing yet but what was `kept`.
    pub async fn open(
        authority: PublicKey,
        me: PeerId,
        clock: Arc<dyn Clock>,
        kept: Option<Kept>,
    ) -> Result<Arc<Self>, StorageError> {
        let (membership, revocations) = match &kept {
            Some(kept) => kept.load().await?,
            None => (None, None),
        };
        let members = Self {
            authority,
            me,
            clock,
            kept,
            own: watch::Sender::new(None),
            revoked: RwLock::default(),
            generation: AtomicU64::new(0),
            admitted: Mutex::default(),
            strangers: Mutex::default(),
        };
        // What is over, or of another swarm that this node was in before, is of no use any more.
        if let Some(error) = revocations.and_then(|list| members.take_revocations(&list).err()) {
            tracing::info!(%error, "the list of revocations that was kept is passed over");
        }
        if let Some(error) = membership.and_then(|own| members.take_membership(&own).err()) {
            tracing::info!(%error, "the membership that was kept is passed over");
        }
        Ok(Arc::new(members))
    }

    /// Who this node is.
    pub const fn me(&self) -> PeerId {
        self.me
    }

    /// The time of day.
    pub fn now(&self) -> u64 {
        self.clock.now_ms()
    }

    /// What trackers are told, so that they tell only what is new.
    pub fn known(&self) -> KnownSwarm {
        let until = self.own.borrow().as_ref().map_or(0, |(_, own)| own.until);
        KnownSwarm { revocations: self.revoked.read().version(), until }
    }

    /// Takes what a tracker told, and keeps it durably.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn take(
        &self,
        membership: Option<&SignedMembership>,
        revocations: Option<&Bytes>,
    ) -> Result<(), Invalid> {
        let revocations = match revocations {
            Some(list) => self.take_revocations(list)?.then_some(list),
            None => None,
        };
        let membership = match membership {
            Some(own) => self.take_membership(own)?.then_some(own),
            None => None,
        };
        if let Some(kept) = &self.kept
            && let Err(error) = kept.keep(membership, revocations).await
        {
            // It counts from now on; after a restart a tracker is asked again.
            tracing::warn!(%error, "what is known of the swarm could not be kept");
        }
        Ok(())
    }

    /// True where it is newer than the one that there was.
    fn take_membership(&self, signed: &SignedMembership) -> Result<bool, Invalid> {
        let own = signed.verify(&self.authority, self.now())?;
        if own.peer != self.me {
            return Err(Invalid::OtherPeer);
        }
        let is_newer = |known: &Option<(_, Membership)>| known.is_none_or(|(_, known)| known.from < own.from);
        Ok(self.own.send_if_modified(|known| {
            let newer = is_newer(known);
            if newer {
                *known = Some((*signed, own));
            }
            newer
        }))
    }

    /// True where it is newer than the one that there was.
    fn take_revocations(&self, bytes: &[u8]) -> Result<bool, Invalid> {
        let list = Revocations::verify(bytes, &self.authority)?;
        {
            let mut known = self.revoked.write();
            if list.version() <= known.version() {
                return Ok(false);
            }
            *known = list;
        }
        self.generation.fetch_add(1, Ordering::Release);
        // In this order everywhere.
        let mut admitted = self.admitted.lock();
        let known = self.revoked.read();
        if known.contains(&self.me) {
            self.own.send_replace(None);
        }
        admitted.throw_out(|peer| known.contains(peer));
        Ok(true)
    }

    /// Changes with each list of revocations.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the peer was thrown out.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.revoked.read().contains(peer)
    }

    /// This node's own membership, if it did not end.
    pub fn own(&self) -> Option<SignedMembership> {
        self.own.borrow().filter(|(_, own)| self.now() < own.until).map(|(signed, _)| signed)
    }

    /// The same; waits for it at most so long, because a node that just started has one in a moment.
    pub async fn own_within(&self, at_most: Duration) -> Option<SignedMembership> {
        let mut changes = self.own.subscribe();
        let soon = changes.wait_for(|own| own.is_some_and(|(_, own)| self.now() < own.until));
        let found = timeout(at_most, soon).await;
        found.ok()?.ok()?.map(|(signed, _)| signed)
    }

    /// Whether what a remote shows makes it a member; until when.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, shown: &SignedMembership, remote: PeerId) -> Result<Membership, Invalid> {
        if shown.claim()?.peer != remote {
            return Err(Invalid::OtherPeer);
        }
        let membership = shown.verify(&self.authority, self.now())?;
        if self.is_revoked(&remote) { Err(Invalid::Revoked) } else { Ok(membership) }
    }

    /// Answers who introduces itself: with this node's own membership.
    ///
    /// # Errors
    /// `unauthorized` to a stranger.
    pub fn introduce(
        &self,
        peer: &PeerInfo,
        shown: &SignedMembership,
    ) -> Result<Option<SignedMembership>, ErrorReply> {
        let Some(remote) = peer.identity else {
            return Err(unauthorized("nobody can be introduced over a connection without an identity"));
        };
        if self.failures(peer.connection) >= MAX_FAILURES {
            return Err(unauthorized("this connection has shown too much that is not accepted"));
        }
        let checked = {
            // A list that comes in between finds the guest and throws it out.
            let mut admitted = self.admitted.lock();
            self.check(shown, remote).map(|membership| {
                let until = membership.until.saturating_add(SKEW_MS);
                admitted.admit(peer.connection, remote, membership.rights, until);
            })
        };
        match checked {
            Ok(()) => Ok(self.own()),
            Err(error) => {
                self.note_failure(peer.connection);
                Err(unauthorized(&format!("the membership is not accepted: {error}")))
            }
        }
    }

    /// Who is behind a connection, if it was let in.
    pub fn guest(&self, connection: ConnectionId) -> Option<Guest> {
        self.admitted.lock().get(connection, self.now())
    }

    fn failures(&self, connection: ConnectionId) -> u32 {
        self.strangers.lock().get(&connection).copied().unwrap_or_default()
    }

    fn note_failure(&self, connection: ConnectionId) {
        let mut strangers = self.strangers.lock();
        if strangers.len() >= MAX_STRANGERS && !strangers.contains_key(&connection) {
            strangers.pop_first();
        }
        *strangers.entry(connection).or_default() += 1;
    }
}

pub(super) fn unauthorized(problem: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::Unauthorized, problem)
}
