//! The membership state of a node: its own membership, the revocation list and the admitted peers.
//!
//! It works offline: a node that reaches no tracker still admits every peer whose membership has not expired.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::timeout;

use super::admitted::{AdmittedPeer, AdmittedPeers};
use super::credentials::revocations::{RevocationPage, Revocations};
use super::refusal::Refusal;
use super::store::{MembershipStore, MembershipUpdate};
use super::verifier::Verifier;
use enjambre_core::model::identity::PublicKey;
use enjambre_core::model::membership::{Invalid, LIFE, Membership, SKEW, SignedMembership};
use enjambre_core::protocol::message::MembershipState;
use enjambre_core::runtime::clock::Clock;
use enjambre_core::{Connection, PeerId, PeerInfo, StorageError, UnixMillis};

/// The membership state of a node.
#[derive(Debug)]
pub struct Members {
    verifier: Verifier,
    me: PeerId,
    clock: Arc<dyn Clock>,
    store: Option<MembershipStore>,
    own: watch::Sender<Option<(SignedMembership, Membership)>>,
    revoked: RwLock<Revocations>,
    /// The last list version that was rejected because it lies in the future.
    future_version: AtomicU64,
    /// Changes with each new revocation.
    generation: AtomicU64,
    admitted: AdmittedPeers,
    /// The connections that this node opened, with their remotes.
    outgoing: Mutex<Vec<(PeerId, Weak<dyn Connection>)>>,
    /// The changes since the last successful save. Locked during a save, so that saves do not overlap.
    unsaved: tokio::sync::Mutex<MembershipUpdate>,
}

impl Members {
    /// Opens the state of the node `me` in the swarm of this authority, from the store if there is one.
    pub async fn open(
        authority: PublicKey,
        me: PeerId,
        clock: Arc<dyn Clock>,
        store: Option<MembershipStore>,
    ) -> Result<Arc<Self>, StorageError> {
        let (membership, mut revoked) = match &store {
            Some(store) => store.load(&authority).await?,
            None => (None, Revocations::default()),
        };
        let unsaved =
            MembershipUpdate { expired: revoked.expire(clock.now()), ..MembershipUpdate::default() };
        let members = Self {
            verifier: Verifier::new(authority),
            me,
            clock,
            store,
            own: watch::Sender::new(None),
            revoked: RwLock::new(revoked),
            future_version: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            admitted: AdmittedPeers::default(),
            outgoing: Mutex::default(),
            unsaved: tokio::sync::Mutex::new(unsaved),
        };
        if let Some(error) = membership.and_then(|own| members.set_membership(&own).err()) {
            tracing::info!(%error, "stored membership ignored");
        }
        Ok(Arc::new(members))
    }

    /// The current time.
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// The versions of the membership and of the revocation list, for a renewal.
    pub fn state(&self) -> MembershipState {
        let until = self.own.borrow().as_ref().map_or(UnixMillis::default(), |(_, own)| own.until);
        MembershipState { revocations: self.revoked.read().version(), expires_ms: until }
    }

    /// Applies a membership and a revocation page of a tracker and stores them. Closes the connections of revoked peers.
    ///
    /// # Errors
    /// The reason why one of them is not valid. A valid one is applied anyway.
    pub async fn update(
        &self,
        membership: Option<&SignedMembership>,
        revocations: Option<&Bytes>,
    ) -> Result<(), Invalid> {
        let mut unsaved = self.unsaved.lock().await;
        let revoked = revocations.map_or(Ok(false), |page| self.add_revocations(page, &mut unsaved));
        if revoked == Ok(true) {
            self.close_revoked().await;
        }
        if let Some(own) = membership
            && self.set_membership(own)?
        {
            unsaved.membership = Some(*own);
        }
        match &self.store {
            Some(store) if !unsaved.is_empty() => {
                match store.save(self.verifier.authority(), &unsaved).await {
                    Ok(()) => *unsaved = MembershipUpdate::default(),
                    // The next update saves it. After a restart a tracker sends it again.
                    Err(error) => tracing::warn!(%error, "membership state not saved"),
                }
            }
            Some(_) => {}
            None => *unsaved = MembershipUpdate::default(),
        }
        revoked.map(drop)
    }

    /// Returns whether the membership is newer than the current one.
    fn set_membership(&self, signed: &SignedMembership) -> Result<bool, Invalid> {
        let own = signed.verify(self.verifier.authority(), self.now())?;
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

    /// Returns whether the page changed the list.
    fn add_revocations(&self, bytes: &[u8], unsaved: &mut MembershipUpdate) -> Result<bool, Invalid> {
        let page = RevocationPage::verify(bytes, self.verifier.authority())?;
        let now = self.now();
        // Versions are times. A version in the future would hide all revocations until then.
        if UnixMillis(page.version()) > now + LIFE {
            if self.future_version.swap(page.version(), Ordering::Relaxed) != page.version() {
                tracing::warn!(
                    version = page.version(),
                    "revocation page ignored: its version is more than a day in the future; check the clocks of this host \
                     and of the tracker"
                );
            }
            return Ok(false);
        }
        {
            let mut known = self.revoked.write();
            unsaved.expired.extend(known.expire(now));
            if !known.add(&page)? {
                return Ok(false);
            }
            unsaved.expired.extend(known.expire(now));
            unsaved.version = Some(known.version());
            unsaved.revoked.extend(page.revocations());
            unsaved.revoked.retain(|revocation| !revocation.is_expired(now));
        }
        self.generation.fetch_add(1, Ordering::Release);
        if self.is_revoked(&self.me) {
            self.own.send_replace(None);
        }
        let closed = self.admitted.revoke(|peer| self.is_revoked(peer));
        tracing::info!(revoked = self.revoked.read().len(), closed, "revocation list updated");
        Ok(true)
    }

    /// Records a connection that this node opened, to close it when the remote is revoked.
    pub(super) fn add_outgoing(&self, remote: PeerId, connection: &Arc<dyn Connection>) {
        let mut outgoing = self.outgoing.lock();
        if outgoing.len() == outgoing.capacity() {
            outgoing.retain(|(_, connection)| connection.strong_count() > 0);
        }
        outgoing.push((remote, Arc::downgrade(connection)));
    }

    /// Closes the connections that this node opened to revoked peers. Their calls fail.
    async fn close_revoked(&self) {
        let revoked: Vec<_> = {
            let list = self.revoked.read();
            let outgoing = self.outgoing.lock();
            outgoing
                .iter()
                .filter(|(remote, _)| list.contains(remote))
                .filter_map(|(_, connection)| connection.upgrade())
                .collect()
        };
        for connection in revoked {
            connection.close().await;
        }
    }

    /// A number that changes with each new revocation.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns whether the peer is on the revocation list.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.revoked.read().contains(peer)
    }

    /// The membership of this node, if it has a valid one.
    pub fn own(&self) -> Option<SignedMembership> {
        self.own.borrow().filter(|(_, own)| self.now() < own.until).map(|(signed, _)| signed)
    }

    /// As [`Members::own`], and waits up to `limit` for one.
    pub async fn wait_own(&self, limit: Duration) -> Option<SignedMembership> {
        let mut changes = self.own.subscribe();
        let valid = changes.wait_for(|own| own.is_some_and(|(_, own)| self.now() < own.until));
        let found = timeout(limit, valid).await;
        found.ok()?.ok()?.map(|(signed, _)| signed)
    }

    /// Returns the content of a signed membership if it is valid for the peer `remote`.
    ///
    /// # Errors
    /// The reason why it is not valid.
    pub fn verify(&self, signed: &SignedMembership, remote: PeerId) -> Result<Membership, Invalid> {
        let membership = self.verifier.verify(signed, remote, self.now())?;
        if self.is_revoked(&remote) { Err(Invalid::Revoked) } else { Ok(membership) }
    }

    /// Admits a peer that presents a membership. Returns the membership of this node.
    ///
    /// # Errors
    /// The reason why the peer is not admitted.
    pub fn authorize(
        &self,
        peer: &PeerInfo,
        signed: &SignedMembership,
    ) -> Result<Option<SignedMembership>, Refusal> {
        let remote = peer.identity.ok_or(Refusal::NoIdentity)?;
        let membership = self.verifier.verify_limited(peer, signed, remote, self.now())?;
        let until = membership.until + SKEW;
        self.admitted.admit(peer, remote, membership.rights, until, |id| self.is_revoked(id))?;
        Ok(self.own())
    }

    /// Returns the peer that was admitted on a connection.
    ///
    /// # Errors
    /// [`Refusal::NotAMember`] and [`Refusal::NoIdentity`].
    pub fn admitted(&self, peer: &PeerInfo) -> Result<Arc<AdmittedPeer>, Refusal> {
        let remote = peer.identity.ok_or(Refusal::NoIdentity)?;
        self.admitted.get(peer.connection, self.now()).ok_or(Refusal::NotAMember(remote))
    }
}
