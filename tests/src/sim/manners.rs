//! How a peer answers others: as it should, or with lies.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::error::ErrorReply;
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::seeder::Seeder;
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::transport::{PeerInfo, ReplySink};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Answers as the seeder does, and then changes some of it.
pub struct Liar {
    seeder: Arc<Seeder>,
    random: Mutex<StdRng>,
}

impl Liar {
    /// Lies by chances that follow from the seed.
    pub fn new(seeder: Arc<Seeder>, seed: u64) -> Self {
        Self { seeder, random: Mutex::new(StdRng::seed_from_u64(seed)) }
    }

    fn bend(&self, reply: &mut Reply, payload: &mut Bytes) {
        let mut random = self.random.lock();
        if random.random_bool(0.5) {
            return;
        }
        let mut bytes = payload.to_vec();
        match (&mut *reply, random.random_range(0..4)) {
            (Reply::Have { size, .. } | Reply::Manifest { size }, 0) => {
                *size = size.wrapping_add(random.random_range(0..3));
            }
            (_, 1) => bytes.truncate(bytes.len() / 2),
            (_, 2) => bytes.push(0),
            _ if bytes.is_empty() => {}
            _ => {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
        }
        *payload = bytes.into();
    }
}

#[async_trait]
impl Handler for Liar {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let (mut reply, mut payload) = self.seeder.handle(id, request, peer, sink).await?;
        self.bend(&mut reply, &mut payload);
        Ok((reply, payload))
    }
}
