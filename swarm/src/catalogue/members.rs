//! The authority, the invitations and the members of an invite-only swarm.
//!
//! The uses of an invitation are counted by conditional commits, so concurrent joins at several trackers on one database
//! never admit more peers than allowed.

use bytes::Bytes;

use super::access::{ATTEMPTS, PAGE, after_key, require_same};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, AUTHORITY, INVITATIONS, InvitationRecord, MEMBERS, MemberRecord, PEERS};
use crate::membership::credentials::authority::Authority;
use enjambre_core::model::membership::Rights;
use enjambre_core::model::secret::SecretHash;
use enjambre_core::{Batch, Durability, KeyPair, KeyRange, PeerId, StorageError, StorageExt, UnixMillis};

/// A member and its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The id of the peer.
    pub peer: PeerId,
    /// The record of the member.
    pub record: MemberRecord,
    /// The last stored renewal, or `None` if the peer has been away for long.
    pub seen: Option<UnixMillis>,
    /// Whether the peer is alive.
    pub alive: bool,
}

impl Catalogue {
    /// Whether the swarm is invite-only. It is as soon as a tracker requested the authority for the first time.
    pub async fn is_invite_only(&self) -> Result<bool, CatalogueError> {
        Ok(self.read(AUTHORITY, &layout::authority_key()).await?.is_some())
    }

    /// Returns the authority of the swarm, which is the same for all trackers on this database. The first call creates it.
    pub async fn authority(&self) -> Result<Authority, CatalogueError> {
        let key = layout::authority_key();
        for _ in 0..ATTEMPTS {
            if let Some(raw) = self.read(AUTHORITY, &key).await? {
                // A commit with unknown outcome may have written it.
                self.storage.sync().await?;
                let secret = raw[..].try_into().map_err(|_| layout::damaged(AUTHORITY, b"key"))?;
                return Ok(Authority::new(KeyPair::from_secret(secret)));
            }
            let mut batch = Batch::new();
            batch.require_absent(AUTHORITY, key.clone());
            batch.put(AUTHORITY, key.clone(), Bytes::copy_from_slice(&KeyPair::generate().secret()));
            // Read back which tracker's key was stored.
            self.commit_durably(batch).await?;
        }
        Err(CatalogueError::Conflict)
    }

    /// Returns the record of a member, including a revoked one.
    pub async fn member(&self, peer: &PeerId) -> Result<Option<MemberRecord>, CatalogueError> {
        let member = self.read_record(MEMBERS, &layout::peer_id_key(peer)).await?;
        Ok(member.map(|(record, _)| record))
    }

    /// Returns one page of all members by ascending id, starting behind `after`. An empty page is the end.
    pub async fn members(
        &self,
        after: Option<&PeerId>,
        now: UnixMillis,
    ) -> Result<Vec<Member>, CatalogueError> {
        let range = after_key(after.map(layout::peer_id_key));
        let page = self.storage.scan(MEMBERS, range, PAGE).await?;
        let keys: Vec<_> = page.iter().map(|(key, _)| key.clone()).collect();
        let mut members = Vec::with_capacity(page.len());
        for ((key, raw), number) in page.iter().zip(self.storage.get(PEERS, &keys).await?) {
            let peer = layout::read_peer_id(MEMBERS, key.as_bytes())?;
            let record = layout::decode(MEMBERS, raw)?;
            let (mut seen, mut alive) = (None, false);
            if let Some(number) = number {
                let number = layout::read_peer(PEERS, &number)?;
                if let Some((lease, _)) = self.read_lease(number, now).await? {
                    seen = Some(lease.renewed);
                    alive = self.leases.lock().is_alive(number, &lease, now);
                }
            }
            members.push(Member { peer, record, seen, alive });
        }
        Ok(members)
    }

    /// Returns the ids of peers that begin with these hexadecimal digits, members first; at most two, which means ambiguous.
    pub async fn peers_with_prefix(&self, digits: &str) -> Result<Vec<PeerId>, StorageError> {
        let mut found = Vec::new();
        for space in [MEMBERS, PEERS] {
            for (key, _) in self.storage.scan(space, layout::id_range(digits), 2).await? {
                let peer = layout::read_peer_id(space, key.as_bytes())?;
                if !found.contains(&peer) && found.len() < 2 {
                    found.push(peer);
                }
            }
        }
        Ok(found)
    }

    /// Creates an invitation with which `uses` peers that know the secret can join until the given time, durably.
    pub async fn invite(
        &self,
        secret: SecretHash,
        rights: Rights,
        uses: u32,
        until: UnixMillis,
        now: UnixMillis,
    ) -> Result<(), StorageError> {
        let record = InvitationRecord { rights, uses, until, at: now };
        let mut batch = Batch::new();
        batch.put(INVITATIONS, layout::invitation_key(secret), layout::encode(&record));
        self.storage.commit(batch, Durability::Durable).await
    }

    /// Makes the peer a member, durably. For a member nothing changes and no use is counted, unless the invitation extends its
    /// rights.
    pub async fn join(
        &self,
        peer: PeerId,
        secret: SecretHash,
        now: UnixMillis,
    ) -> Result<MemberRecord, CatalogueError> {
        let (member_key, invitation_key) = (layout::peer_id_key(&peer), layout::invitation_key(secret));
        for _ in 0..ATTEMPTS {
            let (member, known) = self.read_record::<MemberRecord>(MEMBERS, &member_key).await?.unzip();
            if member.as_ref().is_some_and(|member| member.revoked.is_some()) {
                return Err(CatalogueError::Revoked);
            }
            let rights = member.as_ref().map(|member| member.rights);
            let stored = self.read_record::<InvitationRecord>(INVITATIONS, &invitation_key).await?;
            let Some((invitation, stored)) = stored.filter(|(invitation, _)| {
                invitation.uses > 0 && now < invitation.until && Some(invitation.rights) > rights
            }) else {
                let member = member.ok_or(CatalogueError::NoInvitation)?;
                if member.invitations.contains(&secret) {
                    // A commit with unknown outcome may have written the record.
                    self.storage.sync().await?;
                }
                return Ok(member);
            };
            let mut batch = Batch::new();
            let (joined, mut invitations) =
                member.map_or((now, Vec::new()), |member| (member.joined, member.invitations));
            invitations.push(secret);
            let rights = invitation.rights;
            let member = MemberRecord { rights, joined, revoked: None, invitations };
            require_same(&mut batch, MEMBERS, member_key.clone(), known);
            batch.put(MEMBERS, member_key.clone(), layout::encode(&member));
            batch.require(INVITATIONS, invitation_key.clone(), stored);
            if invitation.uses > 1 {
                let rest = InvitationRecord { uses: invitation.uses - 1, ..invitation };
                batch.put(INVITATIONS, invitation_key.clone(), layout::encode(&rest));
            } else {
                batch.delete(INVITATIONS, invitation_key.clone());
            }
            if self.commit_durably(batch).await? {
                return Ok(member);
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Returns one page of the invitations that are not used up, starting behind `after`; some may have expired. An empty page
    /// is the end.
    pub async fn invitations(
        &self,
        after: Option<&SecretHash>,
        now: UnixMillis,
    ) -> Result<Vec<(SecretHash, InvitationRecord)>, StorageError> {
        let range = after_key(after.map(|id| layout::invitation_key(*id)));
        let (mut entries, mut read) = (self.storage.entries(INVITATIONS, range, PAGE), Vec::new());
        while read.len() < PAGE
            && let Some((key, raw)) = entries.next().await?
        {
            let record = self.damage.skip(layout::decode(INVITATIONS, &raw), now)?;
            if let Some(record) = record {
                read.push((layout::read_invitation_key(key.as_bytes())?, record));
            }
        }
        Ok(read)
    }

    /// Returns the ids of the invitations that begin with these hexadecimal digits; at most two, which means ambiguous.
    pub async fn invitations_with_prefix(&self, digits: &str) -> Result<Vec<SecretHash>, StorageError> {
        let found = self.storage.scan(INVITATIONS, layout::id_range(digits), 2).await?;
        found.iter().map(|(key, _)| layout::read_invitation_key(key.as_bytes())).collect()
    }

    /// Cancels an invitation, durably. Returns `false` if it was used up, expired or cancelled already.
    pub async fn cancel_invitation(&self, id: SecretHash) -> Result<bool, StorageError> {
        // A concurrent join requires that the invitation exists.
        self.delete_durably(INVITATIONS, layout::invitation_key(id)).await
    }

    /// Deletes expired invitations.
    pub async fn sweep_invitations(&self, now: UnixMillis) -> Result<(), StorageError> {
        let mut entries = self.storage.entries(INVITATIONS, KeyRange::all(), PAGE);
        while let Some((key, raw)) = entries.next().await? {
            let record: Option<InvitationRecord> =
                self.damage.skip(layout::decode(INVITATIONS, &raw), now)?;
            if record.is_some_and(|record| record.until <= now) {
                self.delete_unchanged(INVITATIONS, key, raw).await?;
            }
        }
        Ok(())
    }
}
