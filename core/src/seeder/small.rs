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
        let place = self.take_place(peer, request)?;
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

    async fn files(&self, ids: Vec<FileId>, sink: &mut dyn ReplySink) -> Result<(Reply, Bytes), ErrorReply> {
        let sizes = self.library.small_sizes(&ids);
        let mut bytes = 0;
        let fit = sizes.iter().take_while(|size| {
            bytes += size.unwrap_or(0);
            bytes <= REPLY_BYTES
        });
        let mut sizes = sizes[..fit.count()].to_vec();
        let bytes = sizes.iter().flatten().sum::<u64>() as usize;
        // Who is gone takes nothing from the limit, however much it asked for.
        sink.reserve(0).await.map_err(|_| gone())?;
        self.upload.take(bytes).await;
        sink.reserve(bytes).await.map_err(|_| gone())?;
        // What came here meanwhile has no room in the reply.
        let here: Vec<FileId> =
            ids.iter().zip(&sizes).filter(|(_, size)| size.is_some()).map(|(id, _)| *id).collect();
        let read = self.library.read_small(&here).await.map_err(refusal)?;
        for (size, now) in sizes.iter_mut().filter(|size| size.is_some()).zip(read.sizes) {
            *size = now;
        }
        self.sent.fetch_add(read.content.len() as u64, Relaxed);
        Ok((Reply::Files { sizes }, read.content))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use async_trait::async_trait;
    use tempfile::TempDir;

    use super::*;
    use crate::library::content::ContentStore;
    use crate::library::library::Library;
    use crate::library::settings::LibrarySettings;
    use crate::protocol::message::Request;
    use crate::protocol::server::Handler;
    use crate::publish::{PublishOptions, publish};
    use crate::rate::RateLimit;
    use crate::seeder::SeederSettings;
    use crate::storage::memory::Disk;
    use crate::transport::error::TransportError;
    use crate::transport::{ConnectionHandle, ConnectionId, Message, ReplySink};

    /// While room is made in it for a reply, a file comes into the library.
    #[derive(Debug)]
    struct Sink {
        library: Arc<Library>,
        late: PathBuf,
        reserved: usize,
    }

    #[async_trait]
    impl ReplySink for Sink {
        async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError> {
            self.reserved += bytes;
            publish(&self.library, &self.late, PublishOptions::default(), |_| {}).await.unwrap();
            Ok(())
        }

        async fn send(self: Box<Self>, _: Message) -> Result<(), TransportError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_reply_holds_no_more_than_there_was_room_made_for() {
        let folder = TempDir::new().unwrap();
        let (early, late) = (folder.path().join("early"), folder.path().join("late"));
        std::fs::write(&early, [1; 700]).unwrap();
        std::fs::write(&late, [2; 900]).unwrap();
        let store = ContentStore::Database(Arc::new(Disk::new().open()));
        let index = Arc::new(Disk::new().open());
        let library = Library::open(index, store, LibrarySettings::default()).await.unwrap();
        let early = publish(&library, &early, PublishOptions::default(), |_| {}).await.unwrap().id;
        let no_limit = Arc::new(RateLimit::new(None));
        let seeder = Seeder::new(Arc::clone(&library), no_limit, SeederSettings::default());
        let peer = PeerInfo {
            connection: ConnectionId(1),
            handle: ConnectionHandle::default(),
            address: None,
            identity: None,
        };
        let ids = vec![FileId::from_bytes(*blake3::hash(&[2; 900]).as_bytes()), early];
        let mut sink = Sink { library: Arc::clone(&library), late, reserved: 0 };
        let request = Request::Files { ids: ids.clone() };
        let (reply, content) = seeder.handle(RequestId(1), request, &peer, &mut sink).await.unwrap();
        assert_eq!(reply, Reply::Files { sizes: vec![None, Some(700)] });
        assert_eq!((&content[..], sink.reserved), (&[1; 700][..], 700));
        assert_eq!(library.small_sizes(&ids), [Some(900), Some(700)], "it came");
    }
}
