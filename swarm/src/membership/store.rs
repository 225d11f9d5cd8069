//! The membership state of a node in the index of its library. With it a peer can start while no tracker is reachable.

use std::sync::Arc;

use bytes::Bytes;

use super::credentials::revocations::{MAX_REVOKED, PAGE, Revocation, Revocations};
use crate::library::{SWARM, read_revoked_key, revoked_key, revoked_keys, swarm_key};
use enjambre_core::model::identity::PublicKey;
use enjambre_core::model::membership::SignedMembership;
use enjambre_core::{Batch, Durability, PeerId, Storage, StorageError, StorageExt};

/// The key of the node's membership.
const MEMBERSHIP: &str = "membership";
/// The key of the head of the revocation list: authority (32 bytes) and version (8, big-endian).
const REVOCATIONS: &str = "revocations";

/// Stores the membership state.
#[derive(Debug, Clone)]
pub struct MembershipStore {
    index: Arc<dyn Storage>,
}

/// A change of the membership state.
#[derive(Debug, Default)]
pub struct MembershipUpdate {
    /// The new membership of the node.
    pub membership: Option<SignedMembership>,
    /// The new version of the revocation list.
    pub version: Option<u64>,
    /// The new revocations.
    pub revoked: Vec<Revocation>,
    /// Peers whose revocations have expired.
    pub expired: Vec<PeerId>,
}

impl MembershipUpdate {
    /// Returns whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.membership.is_none() && self.version.is_none() && self.expired.is_empty()
    }
}

impl MembershipStore {
    /// A store in the index of a library.
    pub fn new(index: Arc<dyn Storage>) -> Self {
        Self { index }
    }

    /// Returns the membership of the node and the revocation list. Deletes the list, which trackers can send again, if it
    /// is damaged or belongs to another authority.
    pub async fn load(
        &self,
        authority: &PublicKey,
    ) -> Result<(Option<SignedMembership>, Revocations), StorageError> {
        let keys = [MEMBERSHIP, REVOCATIONS].map(swarm_key);
        let mut values = self.index.get(SWARM, &keys).await?.into_iter();
        let membership = values.next().flatten();
        let membership = membership.and_then(|bytes| SignedMembership::from_bytes(&bytes));
        let head = values.next().flatten();
        let version = head.as_ref().and_then(|bytes| {
            let (of, version) = bytes.split_first_chunk::<32>()?;
            (of == authority.as_bytes()).then(|| version.try_into().ok().map(u64::from_be_bytes))?
        });
        if head.is_some() && version.is_none() {
            // The head goes first, and durably. Otherwise a crash and a return to the other authority would make the rest of
            // the list look complete.
            let mut batch = Batch::new();
            batch.delete(SWARM, swarm_key(REVOCATIONS));
            self.index.commit(batch, Durability::Durable).await?;
        }
        let mut revoked = Vec::new();
        let mut pages = self.index.pages(SWARM, revoked_keys(), PAGE);
        while revoked.len() <= 2 * MAX_REVOKED {
            let Some(page) = pages.next().await? else { break };
            if version.is_some() {
                revoked.extend(page.iter().filter_map(|(key, value)| {
                    let version = value[..].try_into().map(u64::from_be_bytes).ok()?;
                    Some(Revocation { peer: read_revoked_key(key)?, version })
                }));
                continue;
            }
            let mut batch = Batch::new();
            for (key, _) in page {
                batch.delete(SWARM, key);
            }
            self.index.commit(batch, Durability::Buffered).await?;
        }
        Ok((membership, Revocations::new(version.unwrap_or_default(), revoked)))
    }

    /// Stores a change. Durable on return.
    pub async fn save(&self, authority: &PublicKey, update: &MembershipUpdate) -> Result<(), StorageError> {
        for peers in update.expired.chunks(PAGE) {
            let mut batch = Batch::new();
            for peer in peers {
                batch.delete(SWARM, revoked_key(peer));
            }
            self.index.commit(batch, Durability::Buffered).await?;
        }
        for revocations in update.revoked.chunks(PAGE) {
            let mut batch = Batch::new();
            for Revocation { peer, version } in revocations {
                batch.put(SWARM, revoked_key(peer), Bytes::copy_from_slice(&version.to_be_bytes()));
            }
            self.index.commit(batch, Durability::Buffered).await?;
        }
        // The version is written last, because a version without its revocations would hide them. This durable commit also
        // makes the ones before it durable.
        let mut batch = Batch::new();
        if let Some(membership) = &update.membership {
            batch.put(SWARM, swarm_key(MEMBERSHIP), Bytes::copy_from_slice(membership.as_bytes()));
        }
        if let Some(version) = update.version {
            let head = [&authority.as_bytes()[..], &version.to_be_bytes()].concat();
            batch.put(SWARM, swarm_key(REVOCATIONS), head);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.index.commit(batch, Durability::Durable).await
    }
}
