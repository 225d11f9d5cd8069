//! What a node knows of its swarm, kept in the index of its library: a peer that starts while all trackers are away goes on
//! with it.

use std::sync::Arc;

use bytes::Bytes;

use crate::library::{SWARM, read_revoked_key, revoked_key, revoked_keys, swarm_key};
use crate::model::id::PeerId;
use crate::model::identity::PublicKey;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};
use crate::swarm::membership::SignedMembership;
use crate::swarm::revocations::{MAX_REVOKED, PAGE, Revocation, Revocations};

/// Where it is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    index: Arc<dyn Storage>,
}

/// What is to be kept.
#[derive(Debug, Default)]
pub struct News {
    /// The node's next membership.
    pub membership: Option<SignedMembership>,
    /// Up to which version all revocations are known.
    pub version: Option<u64>,
    /// Who was thrown out.
    pub revoked: Vec<Revocation>,
    /// Of whom that need not be known any more.
    pub forgotten: Vec<PeerId>,
}

impl News {
    /// Whether there is nothing to be kept.
    pub fn is_empty(&self) -> bool {
        self.membership.is_none() && self.version.is_none() && self.forgotten.is_empty()
    }
}

impl Kept {
    /// In this index of a library.
    pub fn new(index: Arc<dyn Storage>) -> Self {
        Self { index }
    }

    /// What was kept of the swarm of this authority: the node's own membership, and who was thrown out. What is of another swarm,
    /// or cannot be read, is as good as nothing: the next tracker tells all of it.
    pub async fn load(
        &self,
        authority: &PublicKey,
    ) -> Result<(Option<SignedMembership>, Revocations), StorageError> {
        let keys = ["membership", "revocations"].map(swarm_key);
        let mut values = self.index.get(SWARM, &keys).await?.into_iter();
        let membership = values.next().flatten();
        let membership = membership.and_then(|bytes| SignedMembership::from_bytes(&bytes));
        let head = values.next().flatten();
        let version = head.as_ref().and_then(|bytes| {
            let (of, version) = bytes.split_first_chunk::<32>()?;
            (of == authority.as_bytes()).then(|| version.try_into().ok().map(u64::from_be_bytes))?
        });
        if head.is_some() && version.is_none() {
            // First, and durably: whoever comes back to the other authority would take what is left for all that there was.
            let mut batch = Batch::new();
            batch.delete(SWARM, swarm_key("revocations"));
            self.index.commit(batch, Durability::Durable).await?;
        }
        let mut revoked = Vec::new();
        let mut range = revoked_keys();
        while revoked.len() <= 2 * MAX_REVOKED {
            let page = self.index.scan(SWARM, range.clone(), PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
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

    /// Keeps what is new, durably.
    pub async fn keep(&self, authority: &PublicKey, news: &News) -> Result<(), StorageError> {
        for peers in news.forgotten.chunks(PAGE) {
            let mut batch = Batch::new();
            for peer in peers {
                batch.delete(SWARM, revoked_key(peer));
            }
            self.index.commit(batch, Durability::Buffered).await?;
        }
        for revocations in news.revoked.chunks(PAGE) {
            let mut batch = Batch::new();
            for Revocation { peer, version } in revocations {
                batch.put(SWARM, revoked_key(peer), Bytes::copy_from_slice(&version.to_be_bytes()));
            }
            self.index.commit(batch, Durability::Buffered).await?;
        }
        // Last: a version without its revocations would hide them. And with it what was written before is safe.
        let mut batch = Batch::new();
        if let Some(membership) = &news.membership {
            batch.put(SWARM, swarm_key("membership"), Bytes::copy_from_slice(membership.as_bytes()));
        }
        if let Some(version) = news.version {
            let head = [&authority.as_bytes()[..], &version.to_be_bytes()].concat();
            batch.put(SWARM, swarm_key("revocations"), head);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.index.commit(batch, Durability::Durable).await
    }
}
