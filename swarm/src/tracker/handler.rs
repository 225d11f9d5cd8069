//! The request handler of a tracker: requests for content go to the seeder of the replicas, all others to the service.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::service::TrackerService;
use crate::seeder::Seeder;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{EncodedRequest, PeerInfo, ReplySink, RequestId};

/// The service of a tracker, and the seeder of its replicas if it stores any.
#[derive(Debug)]
pub struct TrackerHandler {
    /// Answers requests to the catalogue.
    pub service: Arc<TrackerService>,
    /// Answers requests for content.
    pub seeder: Option<Arc<Seeder>>,
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
