//! A check with many providers that stall, and one honest provider.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::{Dialer, Listener, PeerInfo, Publication, ReplySink, RequestId};
use enjambre_swarm::rate_limit::bandwidth::BandwidthLimit;
use enjambre_swarm::seeder::Seeder;
use enjambre_swarm::tracker_client::client::TrackerClient;
use rand::RngExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::model::Original;
use super::site::{Role, Site};
use super::workload::{deliver, publish_one};
use super::world::{TIMEOUT, World};

const SLOW_PROVIDERS: usize = 9;
/// The longest time of the download of a small file or directory.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(40);
/// Longer than the lookup cache of a tracker is valid.
const LOOKUP_DELAY: Duration = Duration::from_secs(6);

/// A provider that completes a number of replies, and none after them.
struct SlowProvider {
    seeder: Arc<Seeder>,
    replies: AtomicU32,
}

#[async_trait]
impl Handler for SlowProvider {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let left =
            self.replies.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() {
            return self.seeder.handle(id, request, peer, sink).await;
        }
        peer.handle.closed().await;
        Err(ErrorReply::new(ErrorCode::Busy, "the connection is closed"))
    }
}

/// A running slow provider.
struct Running {
    listener: Arc<dyn Listener>,
    serving: JoinHandle<()>,
}

impl World {
    /// A peer downloads a file that one honest peer and many slow providers offer.
    pub(super) async fn check_slow_providers(&mut self) -> Result<(), String> {
        let is_up = |at: &usize| self.peers[*at].running().is_some();
        let source = (0..self.peers.len()).filter(is_up).find(|at| !self.peers[*at].misbehaving);
        let reader = (0..self.peers.len()).filter(is_up).find(|at| Some(*at) != source);
        let (Some(source), Some(reader)) = (source, reader) else { return Ok(()) };
        let original = Original::draw("slow".to_owned(), &mut self.random);
        let path = original.write(self.folder.path()).expect("cannot write the original");
        let Some(from) = self.peers[source].running().cloned() else { return Ok(()) };
        let until = Instant::now() + TIMEOUT;
        let (id, catalogue) = loop {
            match publish_one(&from, source, &path, &original, &self.model).await? {
                Ok(published) => break published,
                // The last attempt to reach a tracker failed before the faults ended.
                Err(_) if Instant::now() < until => sleep(Duration::from_secs(1)).await,
                Err(error) => return Err(format!("publication without faults failed: {error}")),
            }
        };
        let known = {
            let mut model = self.model.lock();
            let known = model.known.get_mut(&id).ok_or("a published file is unknown")?;
            known.acknowledged.insert(original.name, catalogue);
            known.clone()
        };
        let seeder = Seeder::new(Arc::clone(&from.library), Arc::new(BandwidthLimit::new(None)));
        let seeder = Arc::new(seeder);
        let name = "slow".parse().expect("a valid name");
        let file = Publication { name, id, size: known.size, kind: known.original.kind };
        let replies = self.random.random_range(0..4);
        let mut slow = Vec::new();
        for number in 0..SLOW_PROVIDERS {
            let site = Site::new(&self.network, Role::SlowProvider, number, self.random.random(), self.flaw);
            let replies = AtomicU32::new(replies);
            let handler = Arc::new(SlowProvider { seeder: Arc::clone(&seeder), replies });
            let tracker = self.random.random_range(0..self.trackers.len());
            slow.push(self.start_slow_provider(site, handler, tracker, &file).await?);
        }
        sleep(LOOKUP_DELAY).await;
        let Some(to) = self.peers[reader].running().cloned() else { return Ok(()) };
        let start = Instant::now();
        let downloaded = timeout(DOWNLOAD_TIMEOUT, deliver(&to, id, &known, true)).await;
        self.note(&format!("download from slow providers after {:?}: {downloaded:?}", start.elapsed()));
        for Running { listener, serving } in slow {
            listener.shutdown(Duration::ZERO).await;
            let _ended = serving.await;
        }
        match downloaded {
            Ok(Ok(Ok(()))) => {
                let mut model = self.model.lock();
                model.delivered += 1;
                model.completed(reader, id, true);
                Ok(())
            }
            Ok(Err(failure)) => Err(failure),
            failed => Err(format!("slow providers prevent the download of a file: {failed:?}")),
        }
    }

    /// Starts a slow provider that publishes a file at a tracker.
    async fn start_slow_provider(
        &self,
        site: Site,
        handler: Arc<SlowProvider>,
        tracker: usize,
        file: &Publication,
    ) -> Result<Running, String> {
        let Site { key, endpoint, .. } = &site;
        let dialer = Arc::new(Dialer::new(vec![site.transport()]));
        let listener = dialer.bind(endpoint).await.map_err(|error| error.to_string())?;
        let serving = tokio::spawn(serve(Arc::clone(&listener), handler));
        let client = TrackerClient::new(dialer, self.trackers[tracker].site.endpoint.clone());
        let published = async {
            let session = client.open_session(None, key, std::slice::from_ref(endpoint)).await?.1.session;
            client.publish(session, file).await
        };
        published.await.map_err(|error| format!("publication without faults failed: {error}"))?;
        Ok(Running { listener, serving })
    }
}
