//! The authority and the members of an invite-only swarm.

use bytes::Bytes;

use super::access::{ATTEMPTS, PAGE, after_key};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, AUTHORITY, MEMBERS, MemberRecord, PEERS};
use crate::membership::credentials::authority::Authority;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::{Batch, PeerId, StorageError};

/// A member and its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The id of the peer.
    pub peer: PeerId,
    /// The record of the member.
    pub record: MemberRecord,
    /// The last stored renewal, or `None` if the peer has been away for long.
    pub seen: Option<u64>,
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
    pub async fn members(&self, after: Option<&PeerId>, now: u64) -> Result<Vec<Member>, CatalogueError> {
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
}
