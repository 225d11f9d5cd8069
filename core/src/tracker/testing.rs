//! A swarm's control side in one process: trackers and peers on a memory network, under the runtime's clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::offers::OfferSource;
use super::presence::Presence;
use super::service::TrackerService;
use super::settings::TrackerSettings;
use super::trackers::Trackers;
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::clock::TimerClock;
use crate::model::endpoint::Endpoint;
use crate::model::id::FileId;
use crate::model::identity::KeyPair;
use crate::model::record::{FileKind, Offer, Publication};
use crate::protocol::message::CatalogueId;
use crate::protocol::server;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::transport::Listener;
use crate::transport::dialer::Dialer;
use crate::transport::memory::MemoryNetwork;

pub(super) fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

pub(super) fn file(n: u32) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

pub(super) fn publication(name: &str, n: u32) -> Publication {
    Publication { name: name.parse().unwrap(), id: file(n), size: 10, kind: FileKind::File }
}

pub(super) fn offer(n: u32) -> Offer {
    Offer { id: file(n), size: 10, complete: true }
}

pub(super) struct World {
    pub(super) network: MemoryNetwork,
    pub(super) clock: Arc<dyn Clock>,
}

pub(super) struct Tracker {
    pub(super) service: Arc<TrackerService>,
    listener: Arc<dyn Listener>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl World {
    pub(super) fn new() -> Self {
        Self { network: MemoryNetwork::new(), clock: Arc::new(TimerClock::new()) }
    }

    pub(super) fn dialer(&self) -> Arc<Dialer> {
        Arc::new(Dialer::new(vec![self.network.transport()]))
    }

    pub(super) fn trackers(&self, at: &[&str]) -> Arc<Trackers> {
        Arc::new(Trackers::new(&self.dialer(), at.iter().map(|text| endpoint(text))))
    }

    pub(super) async fn tracker<S: Storage>(&self, at: &str, storage: &Arc<S>) -> Tracker {
        let settings = TrackerSettings::default();
        let storage: Arc<dyn Storage> = storage.clone();
        let catalogue = Catalogue::open(storage, settings.rules(), self.clock.now_ms()).await.unwrap();
        let service =
            Arc::new(TrackerService::new(Arc::new(catalogue), settings, Arc::clone(&self.clock), None));
        let listener = self.dialer().bind(&endpoint(at)).await.unwrap();
        let shutdown = CancellationToken::new();
        let run = {
            let (service, shutdown) = (Arc::clone(&service), shutdown.clone());
            tokio::spawn(async move { service.run(shutdown).await })
        };
        let serve = tokio::spawn(server::serve(Arc::clone(&listener), service.clone()));
        Tracker { service, listener, shutdown, tasks: vec![run, serve] }
    }

    pub(super) fn peer(&self, source: &Arc<Shelf>, trackers: &[&str]) -> Presence {
        self.peer_with_key(KeyPair::generate(), source, trackers)
    }

    pub(super) fn peer_with_key(&self, key: KeyPair, source: &Arc<Shelf>, trackers: &[&str]) -> Presence {
        let source: Arc<dyn OfferSource> = source.clone();
        Presence::start(key, vec![endpoint("memory://peer:1")], &self.trackers(trackers), source)
    }
}

impl Tracker {
    /// As `kill -9` does: nothing more is written.
    pub(super) async fn kill(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.listener.shutdown(Duration::ZERO).await;
    }

    /// Goes on listening and answers nobody.
    pub(super) fn hang(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }

    pub(super) async fn stop(self) {
        self.listener.shutdown(Duration::ZERO).await;
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// A library that is a map.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    offers: BTreeMap<FileId, Offer>,
    published: Vec<(Publication, Vec<CatalogueId>)>,
}

impl Shelf {
    pub(super) fn put(&self, n: u32) {
        self.inner.lock().offers.insert(file(n), offer(n));
    }

    pub(super) fn remove(&self, n: u32) {
        self.inner.lock().offers.remove(&file(n));
    }

    pub(super) fn outbox(&self, name: &str, n: u32) -> Publication {
        self.put(n);
        let publication = publication(name, n);
        self.inner.lock().published.push((publication.clone(), Vec::new()));
        publication
    }
}

#[async_trait]
impl OfferSource for Shelf {
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
        let pending = rest.filter(|(_, done)| !done.contains(&catalogue)).map(|(each, _)| each.clone());
        Ok(pending.take(limit).collect())
    }

    async fn mark_published(
        &self,
        catalogue: CatalogueId,
        publication: &Publication,
    ) -> Result<(), StorageError> {
        for (each, done) in &mut self.inner.lock().published {
            if each == publication {
                done.push(catalogue);
            }
        }
        Ok(())
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
