//! Throwing members out, and the list of those that peers are told of.

use super::error::CatalogueError;
use super::layout::{self, LEASES, LeaseRecord, MEMBERS, META, MemberRecord, PEERS, REVOKED, SESSIONS};
use super::{ATTEMPTS, Catalogue};
use crate::model::id::PeerId;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, KeyRange};
use crate::swarm::revocations::{LISTED_MS, MAX_REVOKED, Revocations};

impl Catalogue {
    /// Throws a member out, durably, and ends its session. False where it was out already. [`CatalogueError::NotFound`]
    /// where it never was in.
    pub async fn revoke(&self, peer: &PeerId, now: u64) -> Result<bool, CatalogueError> {
        let key = layout::peer_id_key(peer);
        for _ in 0..ATTEMPTS {
            let Some(raw) = self.read(MEMBERS, &key).await? else {
                return Err(CatalogueError::NotFound { what: format!("a member {peer}") });
            };
            let member: MemberRecord = layout::decode(MEMBERS, &raw)?;
            if member.revoked.is_some() {
                // It may have been written a moment ago by a commit of which the outcome was not known.
                self.storage.sync().await?;
                self.expel(peer, now).await?;
                return Ok(false);
            }
            let mut batch = Batch::new();
            // Read before the list is counted: whoever makes it longer meanwhile changes it.
            self.next_version(&mut batch, now).await?;
            if self.listed(now).await?.len() >= MAX_REVOKED {
                return Err(CatalogueError::TooManyRevoked);
            }
            batch.require(MEMBERS, key.clone(), raw);
            let member = MemberRecord { revoked: Some(now), ..member };
            batch.put(MEMBERS, key.clone(), layout::encode(&member));
            batch.put(REVOKED, key.clone(), layout::number(now));
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => {
                    self.expel(peer, now).await?;
                    return Ok(true);
                }
                Ok(false) | Err(StorageError::Indeterminate { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Grows with the time too: peers take only what is newer, also after an old copy of the database was put back.
    async fn next_version(&self, batch: &mut Batch, now: u64) -> Result<(), StorageError> {
        let key = layout::meta_key("revocations");
        let raw = self.read(META, &key).await?;
        let version = raw.as_ref().map_or(Ok(0), |raw| layout::read_number(META, raw))?;
        match raw {
            Some(raw) => batch.require(META, key.clone(), raw),
            None => batch.require_absent(META, key.clone()),
        };
        batch.put(META, key, layout::number(version.saturating_add(1).max(now)));
        Ok(())
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
            let listed = self.listed(now).await?;
            // Pages are no snapshot: somebody may have been thrown out meanwhile.
            if self.revocations_version().await? == version {
                return Ok(Revocations::new(version, listed));
            }
        }
        Err(CatalogueError::Conflict)
    }

    async fn listed(&self, now: u64) -> Result<Vec<PeerId>, StorageError> {
        let (mut range, mut listed) = (KeyRange::all(), Vec::new());
        loop {
            let page = self.storage.scan(REVOKED, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(listed) };
            range = range.after(last);
            for (key, raw) in page {
                if now < layout::read_number(REVOKED, &raw)?.saturating_add(LISTED_MS) {
                    listed.push(layout::read_peer_id(REVOKED, key.as_bytes())?);
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
                if now >= layout::read_number(REVOKED, &raw)?.saturating_add(LISTED_MS) {
                    let mut batch = Batch::new();
                    batch.require(REVOKED, key.clone(), raw).delete(REVOKED, key);
                    self.try_commit(batch, Durability::Buffered).await?;
                }
            }
        }
    }
}
