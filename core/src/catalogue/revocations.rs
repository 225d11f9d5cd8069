//! Throwing members out, and the list of those that peers are told of.

use bytes::Bytes;

use super::error::CatalogueError;
use super::layout::{
    self, INVITATIONS, InvitationRecord, LEASES, LeaseRecord, MEMBERS, META, MemberRecord, PEERS, REVOKED,
    SESSIONS,
};
use super::members::OpenInvitation;
use super::{ATTEMPTS, Catalogue};
use crate::model::id::PeerId;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange};
use crate::swarm::membership::LIFE_MS;
use crate::swarm::revocations::{MAX_REVOKED, Revocation, Revocations};

/// What became of throwing somebody out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked {
    /// False where the peer was out already.
    pub new: bool,
    /// The invitations that it came by, as they were before they were cancelled with it.
    pub cancelled: Vec<OpenInvitation>,
    /// True where it is not known which those are: it came in before that was written down.
    pub came_unnoted: bool,
    /// True where the list is of a time so far ahead of `now` that no peer takes it: some clock is wrong, or was.
    pub ahead: bool,
}

/// The list as it was at one version: what is over by now is still on it.
#[derive(Debug)]
pub(super) struct ListedAt {
    version: u64,
    listed: Vec<Revocation>,
}

impl Catalogue {
    /// Throws a member out, durably, ends its session, and cancels the invitations that it came by: whoever is behind it
    /// knows them, and would be in again with another key. [`CatalogueError::NotFound`] where it never was in.
    pub async fn revoke(&self, peer: &PeerId, now: u64) -> Result<Revoked, CatalogueError> {
        let key = layout::peer_id_key(peer);
        // What was to be written by a commit of which the outcome was not known, and what became of it if it was.
        let mut tried: Option<(Bytes, Revoked)> = None;
        for _ in 0..ATTEMPTS {
            let Some(raw) = self.read(MEMBERS, &key).await? else {
                return Err(CatalogueError::NotFound { what: format!("a member {peer}") });
            };
            let member: MemberRecord = layout::decode(MEMBERS, &raw)?;
            let came_unnoted = member.invitations.is_empty();
            let mut batch = Batch::new();
            let cancelled = self.cancel_with(&mut batch, &member, now).await?;
            if member.revoked.is_some() {
                let mut revoked = match &tried {
                    Some((written, ours)) if *written == raw => ours.clone(),
                    _ => Revoked { came_unnoted, ..Revoked::default() },
                };
                revoked.cancelled.extend(cancelled);
                match self.commit_or_sync(batch).await {
                    Ok(true) => {
                        self.expel(peer, now).await?;
                        return Ok(revoked);
                    }
                    Ok(false) | Err(StorageError::Indeterminate { .. }) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            // Read before the list is counted: whoever makes it longer meanwhile changes it.
            let (known, version) = self.next_version(&mut batch, now).await?;
            let mut listed = self.listed_at(known, now).await?;
            if listed.len() >= MAX_REVOKED {
                return Err(CatalogueError::TooManyRevoked);
            }
            batch.require(MEMBERS, key.clone(), raw);
            let member = layout::encode(&MemberRecord { revoked: Some(now), ..member });
            batch.put(MEMBERS, key.clone(), member.clone());
            batch.put(REVOKED, key.clone(), layout::number(version));
            let ahead = version > now.saturating_add(LIFE_MS);
            let revoked = Revoked { new: true, cancelled, came_unnoted, ahead };
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => {
                    listed.push(Revocation { peer: *peer, version });
                    *self.listed.lock() = Some(ListedAt { version, listed });
                    self.expel(peer, now).await?;
                    return Ok(revoked);
                }
                Ok(false) => {}
                Err(StorageError::Indeterminate { .. }) => tried = Some((member, revoked)),
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// What is left to be changed for somebody who is out already. Where that is nothing, it may be so by a commit of a moment ago
    /// of which the outcome was not known.
    async fn commit_or_sync(&self, batch: Batch) -> Result<bool, StorageError> {
        if batch.is_empty() {
            return self.storage.sync().await.map(|()| true);
        }
        self.try_commit(batch, Durability::Durable).await
    }

    /// Cancels what the member came by, as far as it still lets somebody in.
    async fn cancel_with(
        &self,
        batch: &mut Batch,
        member: &MemberRecord,
        now: u64,
    ) -> Result<Vec<OpenInvitation>, StorageError> {
        let mut cancelled = Vec::new();
        for id in &member.invitations {
            let key = layout::invitation_key(*id);
            let Some(raw) = self.read(INVITATIONS, &key).await? else { continue };
            let read = layout::decode::<InvitationRecord>(INVITATIONS, &raw);
            cancelled
                .extend(self.damage.pass_over(read, now)?.map(|record| OpenInvitation::new(*id, &record)));
            batch.require(INVITATIONS, key.clone(), raw).delete(INVITATIONS, key);
        }
        Ok(cancelled)
    }

    /// One version for each revocation. It grows with the time too: peers take only what is newer, also after an old copy of the
    /// database was put back. Gives the one that there is, too.
    async fn next_version(&self, batch: &mut Batch, now: u64) -> Result<(u64, u64), StorageError> {
        let key = layout::meta_key("revocations");
        let raw = self.read(META, &key).await?;
        let known = raw.as_ref().map_or(Ok(0), |raw| layout::read_number(META, raw))?;
        match raw {
            Some(raw) => batch.require(META, key.clone(), raw),
            None => batch.require_absent(META, key.clone()),
        };
        let version = known.saturating_add(1).max(now);
        batch.put(META, key, layout::number(version));
        Ok((known, version))
    }

    /// Ends the session of a peer, so that it is out of the answers.
    async fn expel(&self, peer: &PeerId, now: u64) -> Result<(), CatalogueError> {
        let Some(number) = self.read(PEERS, &layout::peer_id_key(peer)).await? else { return Ok(()) };
        let number = layout::read_peer(PEERS, &number)?;
        let key = layout::peer_key(number);
        for _ in 0..ATTEMPTS {
            let Some(raw) = self.read(LEASES, &key).await? else { return Ok(()) };
            let read = layout::decode::<LeaseRecord>(LEASES, &raw);
            let Some(record) = self.damage.pass_over(read, now)? else { return Ok(()) };
            let mut batch = Batch::new();
            batch.delete(SESSIONS, layout::session_key(record.session));
            batch.require(LEASES, key.clone(), raw);
            batch.put(LEASES, key.clone(), layout::encode(&LeaseRecord { left: true, ..record }));
            if self.try_commit(batch, Durability::Durable).await? {
                self.leases.lock().reset(number, now);
                self.cache.lock().forget(number);
                self.remembered.peers_changed();
                return Ok(());
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// The version of the list of revocations.
    pub async fn revocations_version(&self) -> Result<u64, StorageError> {
        let raw = self.read(META, &layout::meta_key("revocations")).await?;
        raw.as_ref().map_or(Ok(0), |raw| layout::read_number(META, raw))
    }

    /// The list of those that were thrown out and may still have a membership that did not end.
    pub async fn revocations(&self, now: u64) -> Result<Revocations, CatalogueError> {
        for _ in 0..ATTEMPTS {
            let version = self.revocations_version().await?;
            let listed = self.listed_at(version, now).await?;
            // Pages are no snapshot: somebody may have been thrown out meanwhile.
            if self.revocations_version().await? == version {
                *self.listed.lock() = Some(ListedAt { version, listed: listed.clone() });
                return Ok(Revocations::new(version, listed));
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Who is on the list at this version. It is remembered: who throws out many does not go through all of them for each.
    async fn listed_at(&self, version: u64, now: u64) -> Result<Vec<Revocation>, StorageError> {
        if let Some(known) = self.listed.lock().as_ref().filter(|known| known.version == version) {
            return Ok(known.listed.iter().filter(|revocation| !revocation.is_over(now)).copied().collect());
        }
        let (mut range, mut listed) = (KeyRange::all(), Vec::new());
        loop {
            let page = self.storage.scan(REVOKED, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(listed) };
            range = range.after(last);
            for (key, raw) in page {
                let revocation = read(&key, &raw)?;
                if !revocation.is_over(now) {
                    listed.push(revocation);
                }
            }
        }
    }

    /// Takes those off the list who have no membership any more.
    pub async fn sweep_revocations(&self, now: u64) -> Result<(), StorageError> {
        let mut range = KeyRange::all();
        loop {
            let page = self.storage.scan(REVOKED, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            range = range.after(last);
            for (key, raw) in page {
                if read(&key, &raw)?.is_over(now) {
                    let mut batch = Batch::new();
                    batch.require(REVOKED, key.clone(), raw).delete(REVOKED, key);
                    self.try_commit(batch, Durability::Buffered).await?;
                }
            }
        }
    }
}

fn read(key: &Key, raw: &[u8]) -> Result<Revocation, StorageError> {
    let peer = layout::read_peer_id(REVOKED, key.as_bytes())?;
    Ok(Revocation { peer, version: layout::read_number(REVOKED, raw)? })
}
