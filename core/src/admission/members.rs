//! What a node knows of the swarm that it is in: its own membership, who was thrown out, and who was let in here.
//!
//! It asks nobody: a node that is cut off from all trackers goes on letting in whoever has a membership that did not end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::timeout;

use super::admitted::{Admitted, Guest};
use super::checks::Checks;
use super::kept::{Kept, News};
use super::refusal::Refusal;
use crate::clock::Clock;
use crate::model::id::PeerId;
use crate::model::identity::PublicKey;
use crate::protocol::message::KnownSwarm;
use crate::storage::error::StorageError;
use crate::swarm::membership::{Invalid, LIFE_MS, Membership, SKEW_MS, SignedMembership};
use crate::swarm::revocations::{RevocationPage, Revocations};
use crate::transport::{Connection, PeerInfo};

/// The swarm of a node.
#[derive(Debug)]
pub struct Members {
    checks: Checks,
    me: PeerId,
    clock: Arc<dyn Clock>,
    kept: Option<Kept>,
    own: watch::Sender<Option<(SignedMembership, Membership)>>,
    revoked: RwLock<Revocations>,
    /// The version of the future that was passed over last.
    future: AtomicU64,
    /// Another number each time somebody was thrown out.
    generation: AtomicU64,
    admitted: Mutex<Admitted>,
    /// The connections that this node made, and to whom.
    made: Mutex<Vec<(PeerId, Weak<dyn Connection>)>>,
    /// What is new since the last time that something was kept. Held while that is done: one after the other.
    unkept: tokio::sync::Mutex<News>,
}

impl Members {
    /// The swarm of this authority, as the node `me` knows it: nothing yet but what was `kept`.
    pub async fn open(
        authority: PublicKey,
        me: PeerId,
        clock: Arc<dyn Clock>,
        kept: Option<Kept>,
    ) -> Result<Arc<Self>, StorageError> {
        let (membership, mut revoked) = match &kept {
            Some(kept) => kept.load(&authority).await?,
            None => (None, Revocations::default()),
        };
        let unkept = News { forgotten: revoked.forget(clock.now_ms()), ..News::default() };
        let members = Self {
            checks: Checks::new(authority),
            me,
            clock,
            kept,
            own: watch::Sender::new(None),
            revoked: RwLock::new(revoked),
            future: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            admitted: Mutex::default(),
            made: Mutex::default(),
            unkept: tokio::sync::Mutex::new(unkept),
        };
        // What is over, or of another swarm that this node was in before, is of no use any more.
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

    /// Takes what a tracker told, and keeps it durably. What is open to somebody on a new list is closed.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn take(
        &self,
        membership: Option<&SignedMembership>,
        revocations: Option<&Bytes>,
    ) -> Result<(), Invalid> {
        let mut unkept = self.unkept.lock().await;
        // A list that cannot be taken is no reason to do without the membership that came with it.
        let told = revocations.map_or(Ok(false), |page| self.take_revocations(page, &mut unkept));
        if told == Ok(true) {
            self.hang_up().await;
        }
        if let Some(own) = membership
            && self.take_membership(own)?
        {
            unkept.membership = Some(*own);
        }
        match &self.kept {
            Some(kept) if !unkept.is_empty() => match kept.keep(self.checks.authority(), &unkept).await {
                Ok(()) => *unkept = News::default(),
                // It counts from now on, and is written with what comes next; after a restart a tracker is asked again.
                Err(error) => tracing::warn!(%error, "what is known of the swarm could not be kept"),
            },
            Some(_) => {}
            None => *unkept = News::default(),
        }
        told.map(drop)
    }

    /// True where it is newer than the one that there was.
    fn take_membership(&self, signed: &SignedMembership) -> Result<bool, Invalid> {
        let own = signed.verify(self.checks.authority(), self.now())?;
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

    /// True where it says something new.
    fn take_revocations(&self, bytes: &[u8], unkept: &mut News) -> Result<bool, Invalid> {
        let page = RevocationPage::verify(bytes, self.checks.authority())?;
        let now = self.now();
        // Versions are times. Who took one of the future would pass over whatever comes until then.
        if page.version() > now.saturating_add(LIFE_MS) {
            if self.future.swap(page.version(), Ordering::Relaxed) != page.version() {
                tracing::warn!(
                    "a tracker tells of revocations more than a day ahead of the clock of this machine, which are passed over: \
                     one of the two clocks is wrong, or was"
                );
            }
            return Ok(false);
        }
        {
            let mut known = self.revoked.write();
            unkept.forgotten.extend(known.forget(now));
            if !known.add(&page)? {
                return Ok(false);
            }
            unkept.forgotten.extend(known.forget(now));
            unkept.version = Some(known.version());
            unkept.revoked.extend(page.revocations());
            unkept.revoked.retain(|revocation| !revocation.is_over(now));
        }
        self.generation.fetch_add(1, Ordering::Release);
        // In this order everywhere.
        let mut admitted = self.admitted.lock();
        let known = self.revoked.read();
        if known.contains(&self.me) {
            self.own.send_replace(None);
        }
        let closed = admitted.throw_out(|peer| known.contains(peer));
        tracing::info!(revoked = known.len(), closed, "who was thrown out of the swarm has changed");
        Ok(true)
    }

    /// Notes a connection that this node made, so that it is closed when the remote is thrown out.
    pub(super) fn note_made(&self, remote: PeerId, connection: &Arc<dyn Connection>) {
        let mut made = self.made.lock();
        if made.len() == made.capacity() {
            made.retain(|(_, connection)| connection.strong_count() > 0);
        }
        made.push((remote, Arc::downgrade(connection)));
    }

    /// Closes the connections that this node made to somebody who was thrown out: calls under way over them end.
    async fn hang_up(&self) {
        let gone: Vec<_> = {
            let revoked = self.revoked.read();
            let made = self.made.lock();
            made.iter()
                .filter(|(remote, _)| revoked.contains(remote))
                .filter_map(|(_, made)| made.upgrade())
                .collect()
        };
        for connection in gone {
            connection.close().await;
        }
    }

    /// Changes whenever somebody was thrown out.
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

    /// What a remote shows, if it makes it a member.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self, shown: &SignedMembership, remote: PeerId) -> Result<Membership, Invalid> {
        let membership = self.checks.check(shown, remote, self.now())?;
        if self.is_revoked(&remote) { Err(Invalid::Revoked) } else { Ok(membership) }
    }

    /// Lets in who introduces itself, and answers with this node's own membership.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn introduce(
        &self,
        over: &PeerInfo,
        shown: &SignedMembership,
    ) -> Result<Option<SignedMembership>, Refusal> {
        let remote = over.identity.ok_or(Refusal::NoIdentity)?;
        let membership = self.checks.check_over(over, shown, remote, self.now())?;
        {
            let mut admitted = self.admitted.lock();
            // A list that comes from here on finds the guest and throws it out.
            if self.is_revoked(&remote) {
                return Err(Refusal::ThrownOut);
            }
            let until = membership.until.saturating_add(SKEW_MS);
            admitted.admit(over, remote, membership.rights, until);
        }
        Ok(self.own())
    }

    /// Who is behind a connection.
    ///
    /// # Errors
    /// Why it is not answered, where it was not let in.
    pub fn guest(&self, over: &PeerInfo) -> Result<Arc<Guest>, Refusal> {
        let remote = over.identity.ok_or(Refusal::NoIdentity)?;
        self.admitted.lock().get(over.connection, self.now()).ok_or(Refusal::Stranger(remote))
    }
}
