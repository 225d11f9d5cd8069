//! Answers requests for many small files at once.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{Seeder, gone, refusal};
use crate::model::id::FileId;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{MAX_FILES, Reply};
use crate::transport::envelope::RequestId;
use crate::transport::{PeerInfo, ReplySink};

/// How many bytes of content a reply has at most.
const REPLY_BYTES: u64 = 1024 * 1024;

impl Seeder {
    pub(super) async fn serve_files(
        &self,
        request: RequestId,
        ids: Vec<FileId>,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        if ids.len() > MAX_FILES {
            let message = format!("{} files in one request, more than {MAX_FILES}", ids.len());
            return Err(ErrorReply::new(ErrorCode::TooLarge, message));
        }
        let place = self.take_place(peer.connection, request)?;
        let work = async {
            let _permit: Option<OwnedSemaphorePermit> = Arc::clone(&place.permits).acquire_owned().await.ok();
            self.files(ids, sink).await
        };
        tokio::select! {
            biased;
            () = place.cancelled.cancelled() => Err(ErrorReply::new(ErrorCode::Busy, "cancelled")),
            reply = work => reply,
        }
    }

    async fn files(
        &self,
        mut ids: Vec<FileId>,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let sizes = self.library.small_sizes(&ids);
        let mut bytes = 0;
        let fit = sizes.iter().take_while(|size| {
            bytes += size.unwrap_or(0);
            bytes <= REPLY_BYTES
        });
        let fit = fit.count();
        ids.truncate(fit);
        let bytes = sizes[..fit].iter().flatten().sum::<u64>() as usize;
        // Who is gone takes nothing from the limit, however much it asked for.
        sink.reserve(0).await.map_err(|_| gone())?;
        self.upload.take(bytes).await;
        sink.reserve(bytes).await.map_err(|_| gone())?;
        let read = self.library.read_small(&ids).await.map_err(refusal)?;
        self.sent.fetch_add(read.content.len() as u64, Relaxed);
        Ok((Reply::Files { sizes: read.sizes }, read.content))
    }
}
