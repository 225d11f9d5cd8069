//! A stranger: a peer that publishes false metadata, tries to use up the quota for replicas, and announces other hosts.

use std::sync::Arc;

use enjambre_core::{Dialer, FileId, FileKind, Publication, SessionId};
use enjambre_swarm::tracker_client::client::TrackerClient;
use enjambre_swarm::tracker_client::error::TrackerError;
use rand::RngExt;
use tokio::time::timeout;

use super::model::PublishedFile;
use super::replicas::QUOTA;
use super::site::{FOREIGN, endpoint};
use super::world::{TIMEOUT, World};

impl World {
    /// Opens a session of the stranger, which also announces hosts that are not its own.
    async fn stranger_session(&self, tracker: usize) -> Result<(TrackerClient, SessionId), TrackerError> {
        let dialer = Arc::new(Dialer::new(vec![self.stranger.transport()]));
        let client = TrackerClient::new(dialer, self.trackers[tracker].site.endpoint.clone());
        let mut endpoints = FOREIGN.map(|host| endpoint(host, 1)).to_vec();
        endpoints.push(self.stranger.endpoint.clone());
        let session = client.open_session(None, &self.stranger.key, &endpoints).await?.1.session;
        Ok((client, session))
    }

    /// The stranger publishes a random file with another kind and size, as a new name or as a new version of its name.
    pub(super) async fn contradict_random(&mut self, tracker: usize) {
        let Some((id, PublishedFile { original, .. })) = self.random_file() else { return };
        let kind = match original.kind {
            FileKind::File | FileKind::Executable => FileKind::Collection,
            FileKind::Collection => FileKind::File,
        };
        let name =
            if self.random.random_bool(0.5) { original.name } else { format!("other {}", original.name) };
        let Ok(name) = name.parse() else { return };
        let size = self.random.random_range(0..1 << 40);
        let published = async {
            let (client, session) = self.stranger_session(tracker).await?;
            client.publish(session, &Publication { name, id, size, kind }).await
        };
        let published = timeout(TIMEOUT / 2, published).await;
        self.note(&format!("the stranger publishes {id} as {kind:?} of {size} bytes: {published:?}"));
    }

    /// The stranger pins content as large as its share of the quota that nobody has.
    pub(super) async fn pin_missing_content(&mut self, tracker: usize) {
        let id = FileId::from_bytes(self.random.random());
        let name = format!("missing {}", id.short()).parse().expect("a valid name");
        let file = Publication { name, id, size: QUOTA / 2, kind: FileKind::File };
        let pinned = async {
            let (client, session) = self.stranger_session(tracker).await?;
            client.publish(session, &file).await?;
            client.pin(session, id).await
        };
        let pinned = timeout(TIMEOUT / 2, pinned).await;
        self.note(&format!("the stranger pins {id}: {pinned:?}"));
    }
}
