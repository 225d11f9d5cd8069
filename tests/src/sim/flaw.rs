//! Deliberate violations of the guarantees, to test that the simulator detects them.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::codec::{decode_request, encode_reply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::{
    Batch, Connection, Deadline, Durability, EncodedRequest, Key, KeyRange, Limits, Message, RequestId,
    Space, Storage, StorageError, Transport, TransportError,
};
use enjambre_testkit::transport::intercept::{Interceptor, intercepted};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A deliberate violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Disks ignore syncs and acknowledge them.
    IgnoredSyncs,
    /// Reads from the disk of a peer sometimes return corrupted data.
    CorruptedReads,
    /// The network acknowledges publications without delivering them to the tracker.
    ForgedAcknowledgements,
    /// The network does not authenticate nodes.
    UnauthenticatedNodes,
    /// Nodes do not see the address of a remote.
    HiddenAddresses,
}

impl Flaw {
    /// All flaws.
    pub const ALL: [Self; 5] = [
        Self::IgnoredSyncs,
        Self::CorruptedReads,
        Self::ForgedAcknowledgements,
        Self::UnauthenticatedNodes,
        Self::HiddenAddresses,
    ];

    /// Wraps the disk of a peer or database.
    pub fn disk(flaw: Option<Self>, disk: Arc<dyn Storage>, seed: u64) -> Arc<dyn Storage> {
        match flaw {
            Some(flaw @ (Self::IgnoredSyncs | Self::CorruptedReads)) => {
                Arc::new(FlawedDisk { inner: disk, flaw, random: Mutex::new(StdRng::seed_from_u64(seed)) })
            }
            _ => disk,
        }
    }

    /// Wraps the network of a peer.
    pub fn network(flaw: Option<Self>, network: Arc<dyn Transport>) -> Arc<dyn Transport> {
        match flaw {
            Some(Self::ForgedAcknowledgements) => intercepted(network, Forger),
            _ => network,
        }
    }
}

#[derive(Debug)]
struct FlawedDisk {
    inner: Arc<dyn Storage>,
    flaw: Flaw,
    random: Mutex<StdRng>,
}

#[async_trait]
impl Storage for FlawedDisk {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let mut values = self.inner.get(space, keys).await?;
        let mut random = self.random.lock();
        if self.flaw == Flaw::CorruptedReads
            && random.random_bool(0.05)
            && let Some(value) = values.iter_mut().flatten().find(|value| value.len() > 1000)
        {
            let mut bytes = value.to_vec();
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1;
            *value = bytes.into();
        }
        Ok(values)
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.inner.scan(space, range, limit).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let buffered = self.flaw == Flaw::IgnoredSyncs;
        self.inner.commit(batch, if buffered { Durability::Buffered } else { durability }).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        if self.flaw == Flaw::IgnoredSyncs { Ok(()) } else { self.inner.sync().await }
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }
}

/// Acknowledges publications.
#[derive(Debug)]
struct Forger;

#[async_trait]
impl Interceptor for Forger {
    async fn call(
        &self,
        inner: &dyn Connection,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        if let Ok(request) = EncodedRequest::parse(header.clone())
            && let Ok(Request::Publish { .. }) = decode_request(&request)
        {
            let header = encode_reply(Some(id), Ok(&Reply::Published { version: 1, new: true }));
            return Ok(Message { header, payload: Bytes::new() });
        }
        inner.call(id, header, deadline).await
    }
}
