//! Tests of trackers with their clients. The harness runs trackers and presences of peers on an in-process network with the
//! clock of the runtime.

mod invite_only;
mod listing;
mod lookups;
mod lost_writes;
mod presence;
mod publications;
mod rogue;
mod service;
mod several_trackers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalogue::Catalogue;
use crate::tracker::service::TrackerService;
use crate::tracker::settings::TrackerSettings;
use crate::tracker_client::offers::{Acknowledgement, OfferSource};
use crate::tracker_client::presence::Presence;
use crate::tracker_client::trackers::Trackers;
use enjambre_core::protocol::server;
use enjambre_core::runtime::clock::Clock;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{
    CatalogueId, Dialer, Endpoint, FileId, FileKind, Gap, KeyPair, Listener, Message, Offer, PeerId,
    Publication, ReplySink, Storage, StorageError, TransportError, UnixMillis,
};
use enjambre_testkit::clock::TimerClock;

pub(crate) fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

pub(crate) fn file(n: u32) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

pub(crate) fn publication(name: &str, n: u32) -> Publication {
    Publication { name: name.parse().unwrap(), id: file(n), size: 10, kind: FileKind::File }
}

pub(crate) fn offer(n: u32) -> Offer {
    Offer { id: file(n), size: 10, complete: true }
}

pub(crate) struct World {
    pub(crate) network: MemoryNetwork,
    pub(crate) clock: Arc<dyn Clock>,
}

pub(crate) struct Tracker {
    pub(crate) service: Arc<TrackerService>,
    listener: Arc<dyn Listener>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// The id of the tracker.
pub(crate) const TRACKER: PeerId = PeerId::from_bytes([0xee; 32]);

impl World {
    pub(crate) fn new() -> Self {
        Self { network: MemoryNetwork::new(), clock: Arc::new(TimerClock::new()) }
    }

    pub(crate) fn dialer(&self) -> Arc<Dialer> {
        Arc::new(Dialer::new(vec![self.network.transport()]))
    }

    pub(crate) fn trackers(&self, at: &[&str]) -> Arc<Trackers> {
        Arc::new(Trackers::new(&self.dialer(), at.iter().map(|text| endpoint(text))))
    }

    pub(crate) async fn tracker<S: Storage>(&self, at: &str, storage: &Arc<S>) -> Tracker {
        let settings = TrackerSettings::default();
        let storage: Arc<dyn Storage> = storage.clone();
        let catalogue = Catalogue::open(storage, settings.rules(), self.clock.now()).await.unwrap();
        let clock = Arc::clone(&self.clock);
        let service = Arc::new(TrackerService::new(Arc::new(catalogue), TRACKER, settings, clock, None));
        let listener = self.dialer().bind(&endpoint(at)).await.unwrap();
        let shutdown = CancellationToken::new();
        let run = {
            let (service, shutdown) = (Arc::clone(&service), shutdown.clone());
            tokio::spawn(async move { service.run(shutdown).await })
        };
        let serve = tokio::spawn(server::serve(Arc::clone(&listener), service.clone()));
        Tracker { service, listener, shutdown, tasks: vec![run, serve] }
    }

    pub(crate) fn peer(&self, source: &Arc<FakeLibrary>, trackers: &[&str]) -> Presence {
        self.peer_with_key(KeyPair::generate(), source, trackers)
    }

    pub(crate) fn peer_with_key(
        &self,
        key: KeyPair,
        source: &Arc<FakeLibrary>,
        trackers: &[&str],
    ) -> Presence {
        let source: Arc<dyn OfferSource> = source.clone();
        Presence::start(None, key, vec![endpoint("memory://peer:1")], &self.trackers(trackers), source)
    }
}

impl Tracker {
    /// Stops without writing the last renewals, as `kill -9` does.
    pub(crate) async fn kill(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.listener.shutdown(Duration::ZERO).await;
    }

    /// Stops replying but continues to listen.
    pub(crate) fn hang(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }

    pub(crate) async fn stop(self) {
        self.listener.shutdown(Duration::ZERO).await;
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// Discards replies.
#[derive(Debug)]
pub(crate) struct NullSink;

#[async_trait]
impl ReplySink for NullSink {
    async fn reserve(&mut self, _bytes: usize) -> Result<(), TransportError> {
        Ok(())
    }

    async fn send(self: Box<Self>, _message: Message) -> Result<(), TransportError> {
        Ok(())
    }
}

/// An in-memory source of offers and publications.
#[derive(Debug, Default)]
pub(crate) struct FakeLibrary {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    offers: BTreeMap<FileId, Offer>,
    published: Vec<(Publication, Vec<(Acknowledgement, UnixMillis)>)>,
}

impl FakeLibrary {
    pub(crate) fn put(&self, n: u32) {
        self.inner.lock().offers.insert(file(n), offer(n));
    }

    pub(crate) fn remove(&self, n: u32) {
        self.inner.lock().offers.remove(&file(n));
    }

    /// Adds a file that is offered and published.
    pub(crate) fn outbox(&self, name: &str, n: u32) -> Publication {
        self.put(n);
        let publication = publication(name, n);
        self.queue(&publication);
        publication
    }

    /// Adds a publication to the outbox.
    pub(crate) fn queue(&self, publication: &Publication) {
        self.inner.lock().published.push((publication.clone(), Vec::new()));
    }
}

#[async_trait]
impl OfferSource for FakeLibrary {
    async fn offers(&self, after: Option<FileId>, limit: usize) -> Result<Vec<Offer>, StorageError> {
        let inner = self.inner.lock();
        let later = inner.offers.values().filter(|offer| after.is_none_or(|after| offer.id > after));
        Ok(later.take(limit).copied().collect())
    }

    async fn pending_publications(
        &self,
        catalogue: CatalogueId,
        after: Option<&Publication>,
        limit: usize,
    ) -> Result<Vec<Publication>, StorageError> {
        let inner = self.inner.lock();
        let seen = after.and_then(|after| inner.published.iter().position(|(each, _)| each == after));
        let rest = inner.published.iter().skip(seen.map_or(0, |at| at + 1));
        let pending = rest
            .filter(|(_, done)| {
                done.iter().all(|(one, at)| one.catalogue != catalogue || *at == UnixMillis(0))
            })
            .map(|(each, _)| each.clone());
        Ok(pending.take(limit).collect())
    }

    async fn mark_published(
        &self,
        publication: &Publication,
        acknowledged: Acknowledgement,
        at: UnixMillis,
    ) -> Result<(), StorageError> {
        for (each, done) in &mut self.inner.lock().published {
            if each == publication {
                done.retain(|(one, _)| one.catalogue != acknowledged.catalogue);
                done.push((acknowledged, at));
            }
        }
        Ok(())
    }

    async fn forget_acknowledgements(
        &self,
        catalogue: CatalogueId,
        gaps: &[Gap],
    ) -> Result<(), StorageError> {
        for (_, done) in &mut self.inner.lock().published {
            for (_, at) in done.iter_mut().filter(|(one, _)| one.catalogue == catalogue) {
                if gaps.iter().any(|gap| gap.contains(*at)) {
                    *at = UnixMillis(0);
                }
            }
        }
        Ok(())
    }

    fn acknowledged_version(&self, catalogue: CatalogueId, publication: &Publication) -> Option<u64> {
        let inner = self.inner.lock();
        // As in `acknowledgement`.
        let last = inner.published.iter().rev().find(|(each, _)| each == publication);
        let mut done = last?.1.iter().filter(|(one, _)| one.catalogue == catalogue);
        done.next().map(|(one, _)| one.version)
    }

    fn acknowledgement(&self, catalogue: CatalogueId, publication: &Publication) -> Option<Acknowledgement> {
        let inner = self.inner.lock();
        // The last of several publications of the same file counts.
        let last = inner.published.iter().rev().find(|(each, _)| each == publication);
        last.and_then(|(_, done)| done.iter().map(|(one, _)| *one).find(|one| one.catalogue == catalogue))
    }

    async fn publications_of(&self, ids: &[FileId]) -> Result<Vec<Publication>, StorageError> {
        let inner = self.inner.lock();
        Ok(inner
            .published
            .iter()
            .map(|(each, _)| each)
            .filter(|each| ids.contains(&each.id))
            .cloned()
            .collect())
    }
}
