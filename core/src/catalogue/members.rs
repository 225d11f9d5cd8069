//! Who may come in and who did: the authority of the swarm, its invitations and its members.
//!
//! Whatever is counted (the uses of an invitation) is a conditional commit, so several trackers on one database, and several
//! peers at once, never let in more than were invited.

use bytes::Bytes;

use super::error::CatalogueError;
use super::layout::{
    self, AUTHORITY, INVITATIONS, InvitationRecord, LEASES, LeaseRecord, MEMBERS, MemberRecord, PEERS,
    PeerNumber, RECORD,
};
use super::{ATTEMPTS, Catalogue, names};
use crate::model::id::PeerId;
use crate::model::identity::KeyPair;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, KeyRange};
use crate::swarm::authority::Authority;
use crate::swarm::invitation::SecretHash;
use crate::swarm::membership::Rights;

/// A member, and what is known of how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub peer: PeerId,
    /// What it may do.
    pub rights: Rights,
    /// When it came in, in milliseconds since 1970-01-01 UTC.
    pub joined: u64,
    /// When it was thrown out.
    pub revoked: Option<u64>,
    /// The invitations that it came by; the second let it do more than the first.
    pub invitations: Vec<SecretHash>,
    /// Its last sign of life that was written down; none where it has not been there for long.
    pub seen: Option<u64>,
    /// Whether it is alive.
    pub alive: bool,
}

/// An invitation that is not used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenInvitation {
    /// What it is called.
    pub id: SecretHash,
    /// What those may do who come in by it.
    pub rights: Rights,
    /// How many more may come in.
    pub uses: u32,
    /// Until when, in milliseconds since 1970-01-01 UTC.
    pub until: u64,
    /// When it was made.
    pub made: u64,
}

impl OpenInvitation {
    pub(super) const fn new(id: SecretHash, record: &InvitationRecord) -> Self {
        let InvitationRecord { rights, uses, until, at: made, .. } = *record;
        Self { id, rights, uses, until, made }
    }
}

impl Catalogue {
    /// Whether the swarm is by invitation: it is from the first time on that a tracker asked for the authority.
    pub async fn is_by_invitation(&self) -> Result<bool, CatalogueError> {
        Ok(self.read(AUTHORITY, &layout::authority_key()).await?.is_some())
    }

    /// The authority of the swarm: the same for all trackers on this database, made when it is first asked for.
    pub async fn authority(&self) -> Result<Authority, CatalogueError> {
        let key = layout::authority_key();
        let mut doubtful = false;
        for _ in 0..ATTEMPTS {
            if let Some(raw) = self.read(AUTHORITY, &key).await? {
                if doubtful {
                    self.storage.sync().await?;
                }
                let secret = raw[..].try_into().map_err(|_| layout::damaged(AUTHORITY, b"key"))?;
                return Ok(Authority::new(KeyPair::from_secret(secret)));
            }
            let mut batch = Batch::new();
            batch.require_absent(AUTHORITY, key.clone());
            batch.put(AUTHORITY, key.clone(), Bytes::copy_from_slice(&KeyPair::generate().secret()));
            match self.storage.commit(batch, Durability::Durable).await {
                // Read back what now counts, whoever wrote it.
                Ok(()) | Err(StorageError::Conflict) => {}
                Err(StorageError::Indeterminate { .. }) => doubtful = true,
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Lets `uses` peers in that know the secret, until this time. Durable.
    pub async fn invite(
        &self,
        secret: SecretHash,
        rights: Rights,
        uses: u32,
        until: u64,
        now: u64,
    ) -> Result<(), StorageError> {
        let record = InvitationRecord { v: RECORD, rights, uses, until, at: now };
        let mut batch = Batch::new();
        batch.put(INVITATIONS, layout::invitation_key(secret), layout::encode(&record));
        self.storage.commit(batch, Durability::Durable).await
    }

    /// A peer comes in, durably. One that is in already stays as it is and uses nothing up, unless the invitation
    /// lets it do more than before.
    pub async fn join(
        &self,
        peer: PeerId,
        secret: SecretHash,
        now: u64,
    ) -> Result<MemberRecord, CatalogueError> {
        let (member_key, invitation_key) = (layout::peer_id_key(&peer), layout::invitation_key(secret));
        for _ in 0..ATTEMPTS {
            let known = self.read(MEMBERS, &member_key).await?;
            let member =
                known.as_ref().map(|raw| layout::decode::<MemberRecord>(MEMBERS, raw)).transpose()?;
            if member.as_ref().is_some_and(|member| member.revoked.is_some()) {
                return Err(CatalogueError::Revoked);
            }
            let stored = self.read(INVITATIONS, &invitation_key).await?;
            let invitation = match &stored {
                Some(raw) => Some(layout::decode::<InvitationRecord>(INVITATIONS, raw)?),
                None => None,
            };
            let invitation = invitation.filter(|invitation| invitation.uses > 0 && now < invitation.until);
            let (invitation, stored) = match (&member, invitation.zip(stored)) {
                (Some(member), Some((invitation, _))) if invitation.rights <= member.rights => {
                    return self.settled(member.clone(), secret).await;
                }
                (Some(member), None) => return self.settled(member.clone(), secret).await,
                (None, None) => return Err(CatalogueError::NoInvitation),
                (_, Some(invitation)) => invitation,
            };
            let mut batch = Batch::new();
            let (joined, mut invitations) =
                member.map_or((now, Vec::new()), |member| (member.joined, member.invitations));
            invitations.push(secret);
            let rights = invitation.rights;
            let member = MemberRecord { v: RECORD, rights, joined, revoked: None, invitations };
            match known {
                Some(raw) => batch.require(MEMBERS, member_key.clone(), raw),
                None => batch.require_absent(MEMBERS, member_key.clone()),
            };
            batch.put(MEMBERS, member_key.clone(), layout::encode(&member));
            batch.require(INVITATIONS, invitation_key.clone(), stored);
            if invitation.uses > 1 {
                let rest = InvitationRecord { uses: invitation.uses - 1, ..invitation };
                batch.put(INVITATIONS, invitation_key.clone(), layout::encode(&rest));
            } else {
                batch.delete(INVITATIONS, invitation_key.clone());
            }
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => return Ok(member),
                // After the outcome is known, the next round finds the member or makes it one.
                Ok(false) | Err(StorageError::Indeterminate { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// What came of this secret may have been written a moment ago by a commit of which the outcome was not known.
    async fn settled(
        &self,
        member: MemberRecord,
        secret: SecretHash,
    ) -> Result<MemberRecord, CatalogueError> {
        if member.invitations.contains(&secret) {
            self.storage.sync().await?;
        }
        Ok(member)
    }

    /// A member, also one that was thrown out.
    pub async fn member(&self, peer: &PeerId) -> Result<Option<MemberRecord>, CatalogueError> {
        let raw = self.read(MEMBERS, &layout::peer_id_key(peer)).await?;
        Ok(raw.map(|raw| layout::decode(MEMBERS, &raw)).transpose()?)
    }

    /// One page of all members in the order of their ids, after `after`. An empty page is the end.
    pub async fn members(&self, after: Option<&PeerId>, now: u64) -> Result<Vec<Member>, CatalogueError> {
        let range = KeyRange::all();
        let range = after.map_or(range.clone(), |peer| range.after(&layout::peer_id_key(peer)));
        let page = self.storage.scan(MEMBERS, range, super::PAGE).await?;
        let keys: Vec<_> = page.iter().map(|(key, _)| key.clone()).collect();
        let mut members = Vec::with_capacity(page.len());
        for ((key, raw), number) in page.iter().zip(self.storage.get(PEERS, &keys).await?) {
            let peer = layout::read_peer_id(MEMBERS, key.as_bytes())?;
            let MemberRecord { rights, joined, revoked, invitations, .. } = layout::decode(MEMBERS, raw)?;
            let number = number.map(|raw| layout::read_peer(PEERS, &raw)).transpose()?;
            let (seen, alive) = match number {
                Some(number) => self.last_seen(number, now).await?,
                None => (None, false),
            };
            members.push(Member { peer, rights, joined, revoked, invitations, seen, alive });
        }
        Ok(members)
    }

    async fn last_seen(&self, peer: PeerNumber, now: u64) -> Result<(Option<u64>, bool), StorageError> {
        let Some(raw) = self.read(LEASES, &layout::peer_key(peer)).await? else { return Ok((None, false)) };
        let record = self.damage.pass_over(layout::decode::<LeaseRecord>(LEASES, &raw), now)?;
        Ok(record.map_or((None, false), |record| {
            let alive = self.leases.lock().is_alive(peer, &record, now);
            (Some(record.renewed), alive)
        }))
    }

    /// The peers whose ids begin with these hexadecimal digits, members first; at most two, which is one too many.
    pub async fn peers_beginning(&self, digits: &str) -> Result<Vec<PeerId>, StorageError> {
        let mut found = Vec::new();
        for space in [MEMBERS, PEERS] {
            for (key, _) in self.storage.scan(space, names::id_range(digits), 2).await? {
                let peer = layout::read_peer_id(space, key.as_bytes())?;
                if !found.contains(&peer) && found.len() < 2 {
                    found.push(peer);
                }
            }
        }
        Ok(found)
    }

    /// One page of the invitations that are not used up, after `after`; some may be over. An empty page is the end.
    pub async fn invitations(
        &self,
        after: Option<&SecretHash>,
        now: u64,
    ) -> Result<Vec<OpenInvitation>, StorageError> {
        let mut range = KeyRange::all();
        if let Some(after) = after {
            range = range.after(&layout::invitation_key(*after));
        }
        loop {
            let page = self.storage.scan(INVITATIONS, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(Vec::new()) };
            range = range.after(last);
            let mut read = Vec::with_capacity(page.len());
            for (key, raw) in &page {
                let record = self.damage.pass_over(layout::decode(INVITATIONS, raw), now)?;
                if let Some(record) = record {
                    read.push(OpenInvitation::new(layout::read_invitation_key(key.as_bytes())?, &record));
                }
            }
            // One of damaged invitations alone is not the end.
            if !read.is_empty() {
                return Ok(read);
            }
        }
    }

    /// The invitations that are called so, by the first hexadecimal digits; at most two, which is one too many.
    pub async fn invitations_beginning(&self, digits: &str) -> Result<Vec<SecretHash>, StorageError> {
        let found = self.storage.scan(INVITATIONS, names::id_range(digits), 2).await?;
        found.iter().map(|(key, _)| layout::read_invitation_key(key.as_bytes())).collect()
    }

    /// From now on nobody comes in by this invitation, durably. False where it was used up, over or cancelled already.
    pub async fn cancel_invitation(&self, id: SecretHash) -> Result<bool, StorageError> {
        let key = layout::invitation_key(id);
        let known = self.read(INVITATIONS, &key).await?.is_some();
        let mut batch = Batch::new();
        // Who comes in by it at this moment has the condition that it is there.
        batch.delete(INVITATIONS, key);
        self.storage.commit(batch, Durability::Durable).await?;
        Ok(known)
    }

    /// Takes invitations away that are over.
    pub async fn sweep_invitations(&self, now: u64) -> Result<(), StorageError> {
        let mut range = KeyRange::all();
        loop {
            let page = self.storage.scan(INVITATIONS, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            range = range.after(last);
            for (key, raw) in page {
                let read = layout::decode::<InvitationRecord>(INVITATIONS, &raw);
                let Some(record) = self.damage.pass_over(read, now)? else { continue };
                if record.until <= now {
                    let mut batch = Batch::new();
                    batch.require(INVITATIONS, key.clone(), raw).delete(INVITATIONS, key);
                    self.try_commit(batch, Durability::Buffered).await?;
                }
            }
        }
    }
}
