//! Parts that are broken on purpose, to see that the simulator finds it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::protocol::codec::{decode_request, encode_reply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::storage::Storage;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space};
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Deadline, Listener, Message, Transport};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Disks say that they have synced, and have not.
    LyingDisks,
    /// What is read from the disk of a peer is now and then not what was written.
    RottenReads,
    /// Publications are acknowledged on the way, and the tracker never hears of them.
    ForgedAcknowledgements,
}

impl Flaw {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::LyingDisks, Self::RottenReads, Self::ForgedAcknowledgements];

    /// A disk as a peer or a database gets it.
    pub fn disk(flaw: Option<Self>, disk: Arc<dyn Storage>, seed: u64) -> Arc<dyn Storage> {
        match flaw {
            Some(flaw @ (Self::LyingDisks | Self::RottenReads)) => {
                Arc::new(FlawedDisk { inner: disk, flaw, random: Mutex::new(StdRng::seed_from_u64(seed)) })
            }
            _ => disk,
        }
    }

    /// The network as a peer gets it.
    pub fn network(flaw: Option<Self>, network: Arc<dyn Transport>) -> Arc<dyn Transport> {
        match flaw {
            Some(Self::ForgedAcknowledgements) => Arc::new(Forger(network)),
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
        if self.flaw == Flaw::RottenReads
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
        let lies = self.flaw == Flaw::LyingDisks;
        self.inner.commit(batch, if lies { Durability::Buffered } else { durability }).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        if self.flaw == Flaw::LyingDisks { Ok(()) } else { self.inner.sync().await }
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        self.inner.close().await
    }
}

#[derive(Debug)]
struct Forger(Arc<dyn Transport>);

#[async_trait]
impl Transport for Forger {
    fn scheme(&self) -> &'static str {
        self.0.scheme()
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        Ok(Arc::new(Forging(self.0.connect(endpoint).await?)))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.0.bind(endpoint).await
    }
}

#[derive(Debug)]
struct Forging(Arc<dyn Connection>);

#[async_trait]
impl Connection for Forging {
    fn next_id(&self) -> RequestId {
        self.0.next_id()
    }

    async fn call(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        if let Ok((_, Request::Publish { .. })) = decode_request(&header) {
            let header = encode_reply(Some(id), Ok(&Reply::Published { version: 1, new: true }));
            return Ok(Message { header, payload: Bytes::new() });
        }
        self.0.call(id, header, deadline).await
    }

    fn endpoint(&self) -> &Endpoint {
        self.0.endpoint()
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
