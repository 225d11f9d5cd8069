//! The request handler of a tracker: requests for content go to the seeder of the replicas, all others to the service.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{EncodedRequest, PeerInfo, ReplySink, RequestId};
use enjambre_swarm::seeder::Seeder;
use enjambre_swarm::tracker::service::TrackerService;

#[derive(Debug)]
pub(super) struct TrackerHandler {
    pub(super) service: Arc<TrackerService>,
    pub(super) seeder: Option<Arc<Seeder>>,
}

#[async_trait]
impl Handler for TrackerHandler {
    fn answer_immediately(&self, request: &EncodedRequest, peer: &PeerInfo) -> Option<Bytes> {
        self.service.answer_immediately(request, peer)
    }

    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let is_for_seeder = matches!(
            request,
            Request::Manifest { .. }
                | Request::Have { .. }
                | Request::Piece { .. }
                | Request::Files { .. }
                | Request::Cancel { .. }
        );
        match &self.seeder {
            Some(seeder) if is_for_seeder => seeder.handle(id, request, peer, sink).await,
            None if is_for_seeder => Err(ErrorReply::new(
                ErrorCode::Unsupported,
                "this tracker stores no replicas; request the content from a peer",
            )),
            _ => self.service.handle(id, request, peer, sink).await,
        }
    }
}
