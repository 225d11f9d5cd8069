//! A seeder that sends invalid data.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::error::ErrorReply;
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{PeerInfo, ReplySink, RequestId};
use enjambre_swarm::seeder::Seeder;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A seeder whose replies are randomly corrupted.
pub struct MisbehavingSeeder {
    seeder: Arc<Seeder>,
    random: Mutex<StdRng>,
}

impl MisbehavingSeeder {
    /// Wraps a seeder. The seed determines which replies are corrupted.
    pub fn new(seeder: Arc<Seeder>, seed: u64) -> Self {
        Self { seeder, random: Mutex::new(StdRng::seed_from_u64(seed)) }
    }

    fn corrupt(&self, reply: &mut Reply, payload: &mut Bytes) {
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
impl Handler for MisbehavingSeeder {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let (mut reply, mut payload) = self.seeder.handle(id, request, peer, sink).await?;
        self.corrupt(&mut reply, &mut payload);
        Ok((reply, payload))
    }
}
