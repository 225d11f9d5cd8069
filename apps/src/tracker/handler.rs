//! One endpoint for two: requests for pieces go to the tracker's own copies, all others to the tracker.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::seeder::Seeder;
use enjambre_core::tracker::service::TrackerService;
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::transport::{PeerInfo, ReplySink};

/// Answers what comes in at a tracker.
#[derive(Debug)]
pub(super) struct TrackerHandler {
    pub(super) service: Arc<TrackerService>,
    pub(super) seeder: Option<Arc<Seeder>>,
}

#[async_trait]
impl Handler for TrackerHandler {
    fn answer_at_once(&self, header: &[u8], peer: &PeerInfo) -> Option<Bytes> {
        self.service.answer_at_once(header, peer)
    }

    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let for_a_peer = matches!(
            request,
            Request::Manifest { .. }
                | Request::Have { .. }
                | Request::Piece { .. }
                | Request::Files { .. }
                | Request::Cancel { .. }
        );
        match &self.seeder {
            Some(seeder) if for_a_peer => seeder.handle(id, request, peer, sink).await,
            None if for_a_peer => {
                Err(ErrorReply::new(ErrorCode::Unsupported, "this tracker keeps no copies; ask a peer"))
            }
            _ => self.service.handle(id, request, peer, sink).await,
        }
    }
}
