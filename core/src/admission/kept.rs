//! What a node knows of its swarm, kept in the index of its library: a peer that starts while all trackers are away goes on
//! with it.

use std::sync::Arc;

use bytes::Bytes;

use crate::library::{SWARM, swarm_key};
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};
use crate::swarm::membership::SignedMembership;

/// Where it is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    index: Arc<dyn Storage>,
}

impl Kept {
    /// In this index of a library.
    pub fn new(index: Arc<dyn Storage>) -> Self {
        Self { index }
    }

    /// What was kept: the node's own membership, and the signed list of revocations. What cannot be read is as good as none:
    /// the next tracker gives another.
    pub async fn load(&self) -> Result<(Option<SignedMembership>, Option<Bytes>), StorageError> {
        let keys = ["membership", "revocations"].map(swarm_key);
        let mut values = self.index.get(SWARM, &keys).await?.into_iter();
        let membership = values.next().flatten();
        let membership = membership.and_then(|bytes| SignedMembership::from_bytes(&bytes));
        Ok((membership, values.next().flatten()))
    }

    /// Keeps what is given, durably.
    pub async fn keep(
        &self,
        membership: Option<&SignedMembership>,
        revocations: Option<&Bytes>,
    ) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        if let Some(membership) = membership {
            batch.put(SWARM, swarm_key("membership"), Bytes::copy_from_slice(membership.as_bytes()));
        }
        if let Some(revocations) = revocations {
            batch.put(SWARM, swarm_key("revocations"), revocations.clone());
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.index.commit(batch, Durability::Durable).await
    }
}
