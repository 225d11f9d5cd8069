//! Revocation of members, and the revocation list.

use bytes::Bytes;

use super::access::{ATTEMPTS, PAGE, require_same};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, INVITATIONS, InvitationRecord, MEMBERS, META, MemberRecord, PEERS, REVOKED};
use crate::membership::credentials::revocations::{MAX_REVOKED, Revocation, Revocations};
use enjambre_core::model::membership::LIFE;
use enjambre_core::model::secret::SecretHash;
use enjambre_core::{Batch, Durability, Key, KeyRange, PeerId, StorageError, StorageExt, UnixMillis};

/// The result of [`Catalogue::revoke`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevokeOutcome {
    /// Whether the member was not revoked before.
    pub new: bool,
    /// The invitations with which it joined, as they were before they were cancelled.
    pub cancelled: Vec<(SecretHash, InvitationRecord)>,
    /// Whether the version of the list is so far ahead of `now` that no peer accepts it, because some clock is or was wrong.
    pub ahead: bool,
}

impl Catalogue {
    /// Revokes a member, durably, ends its session, and cancels the invitations with which it joined, because the user of the
    /// peer knows them and could rejoin with another key.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if the peer never was a member.
    pub async fn revoke(&self, peer: &PeerId, now: UnixMillis) -> Result<RevokeOutcome, CatalogueError> {
        let key = layout::peer_id_key(peer);
        // The record of a commit with unknown outcome, and the result if it was applied.
        let mut tried: Option<(Bytes, RevokeOutcome)> = None;
        for _ in 0..ATTEMPTS {
            let stored = self.read_record::<MemberRecord>(MEMBERS, &key).await?;
            let (member, raw) = stored.ok_or_else(|| CatalogueError::NotFound(format!("a member {peer}")))?;
            let mut batch = Batch::new();
            let cancelled = self.cancel_with(&mut batch, &member, now).await?;
            if member.revoked.is_some() {
                let mut outcome = match &tried {
                    Some((written, ours)) if *written == raw => ours.clone(),
                    _ => RevokeOutcome::default(),
                };
                outcome.cancelled.extend(cancelled);
                if batch.is_empty() {
                    // The last change may come from a commit with unknown outcome.
                    self.storage.sync().await?;
                } else if !self.commit_durably(batch).await? {
                    continue;
                }
                self.end_session_of(peer, now).await?;
                return Ok(outcome);
            }
            // The version is read before the list is counted: a concurrent revocation changes it and causes a conflict.
            let (known, version) = self.next_version(&mut batch, now).await?;
            let mut list = self.revocations_at(known, now).await?;
            if list.len() >= MAX_REVOKED {
                return Err(CatalogueError::TooManyRevoked);
            }
            batch.require(MEMBERS, key.clone(), raw);
            let member = layout::encode(&MemberRecord { revoked: Some(now), ..member });
            batch.put(MEMBERS, key.clone(), member.clone());
            batch.put(REVOKED, key.clone(), layout::number(version));
            let ahead = UnixMillis(version) > now + LIFE;
            let outcome = RevokeOutcome { new: true, cancelled, ahead };
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => {
                    list.push(Revocation { peer: *peer, version });
                    *self.revocations.lock() = Some((version, list));
                    self.end_session_of(peer, now).await?;
                    return Ok(outcome);
                }
                Ok(false) => {}
                Err(StorageError::Indeterminate { .. }) => tried = Some((member, outcome)),
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Adds the cancellation of the member's invitations to the batch, and returns those that were still valid.
    async fn cancel_with(
        &self,
        batch: &mut Batch,
        member: &MemberRecord,
        now: UnixMillis,
    ) -> Result<Vec<(SecretHash, InvitationRecord)>, StorageError> {
        let mut cancelled = Vec::new();
        for id in &member.invitations {
            let key = layout::invitation_key(*id);
            let Some(raw) = self.read(INVITATIONS, &key).await? else { continue };
            let record = self.damage.skip(layout::decode(INVITATIONS, &raw), now)?;
            cancelled.extend(record.map(|record| (*id, record)));
            batch.require(INVITATIONS, key.clone(), raw).delete(INVITATIONS, key);
        }
        Ok(cancelled)
    }

    /// Returns the current version of the list and the version of the next revocation, which the batch stores. Versions grow
    /// with the time, too: peers accept only newer ones, even after an old backup of the database was restored.
    async fn next_version(&self, batch: &mut Batch, now: UnixMillis) -> Result<(u64, u64), StorageError> {
        let key = layout::meta_key("revocations");
        let raw = self.read(META, &key).await?;
        let known = raw.as_ref().map_or(Ok(0), |raw| layout::read_number(META, raw))?;
        require_same(batch, META, key.clone(), raw);
        let version = known.saturating_add(1).max(now.get());
        batch.put(META, key, layout::number(version));
        Ok((known, version))
    }

    /// Ends the session of a peer, so that it is no longer named as a provider.
    async fn end_session_of(&self, peer: &PeerId, now: UnixMillis) -> Result<(), CatalogueError> {
        if let Some(number) = self.peer_number(PEERS, &layout::peer_id_key(peer)).await? {
            self.end_session(number, None, now).await?;
        }
        Ok(())
    }

    /// Returns the version of the revocation list.
    pub async fn revocations_version(&self) -> Result<u64, StorageError> {
        let raw = self.read(META, &layout::meta_key("revocations")).await?;
        raw.as_ref().map_or(Ok(0), |raw| layout::read_number(META, raw))
    }

    /// Returns the revocation list: the revoked members whose membership may not have expired yet.
    pub async fn revocations(&self, now: UnixMillis) -> Result<Revocations, CatalogueError> {
        for _ in 0..ATTEMPTS {
            let version = self.revocations_version().await?;
            let list = self.revocations_at(version, now).await?;
            // Pages are not a snapshot: check that there was no concurrent revocation.
            if self.revocations_version().await? == version {
                *self.revocations.lock() = Some((version, list.clone()));
                return Ok(Revocations::new(version, list));
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Returns the list at this version, from the cache if possible.
    async fn revocations_at(&self, version: u64, now: UnixMillis) -> Result<Vec<Revocation>, StorageError> {
        if let Some((_, list)) = self.revocations.lock().as_ref().filter(|(cached, _)| *cached == version) {
            return Ok(list.iter().filter(|revocation| !revocation.is_expired(now)).copied().collect());
        }
        let (mut entries, mut list) = (self.storage.entries(REVOKED, KeyRange::all(), PAGE), Vec::new());
        while let Some((key, raw)) = entries.next().await? {
            list.push(read(&key, &raw)?);
        }
        list.retain(|revocation| !revocation.is_expired(now));
        Ok(list)
    }

    /// Deletes the revocations of peers whose membership has expired.
    pub async fn sweep_revocations(&self, now: UnixMillis) -> Result<(), StorageError> {
        let mut entries = self.storage.entries(REVOKED, KeyRange::all(), PAGE);
        while let Some((key, raw)) = entries.next().await? {
            if read(&key, &raw)?.is_expired(now) {
                self.delete_unchanged(REVOKED, key, raw).await?;
            }
        }
        Ok(())
    }
}

fn read(key: &Key, raw: &[u8]) -> Result<Revocation, StorageError> {
    let peer = layout::read_peer_id(REVOKED, key.as_bytes())?;
    Ok(Revocation { peer, version: layout::read_number(REVOKED, raw)? })
}
