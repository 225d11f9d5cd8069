//! The commands of a running tracker. Those of the administration work without it as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use enjambre_control::{
    CatalogueLine, CataloguePage, Command, Event, Events, Execute, Failure, FileDetail, Input, MAX_VERSIONS,
    OnlinePeer, PeerPage, StorageLatency, StoreUsage, TrackerNodeStatus,
};
use enjambre_core::protocol::message::{MAX_LIST, MAX_QUERY};
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::storage::metrics::Operation;
use enjambre_core::{Endpoint, PeerId, Storage};
use enjambre_swarm::catalogue::error::CatalogueError;
use enjambre_swarm::catalogue::layout::PeerNumber;
use enjambre_swarm::catalogue::list::ListPage;
use enjambre_swarm::catalogue::pattern::Pattern;
use enjambre_swarm::tracker::service::TrackerService;
use enjambre_swarm::tracker_client::listing::InvalidCursor;

use super::admin::AdminService;
use crate::node_commands::watch;

/// Time after which a search reports what it has found, so that people see matches early in a large catalogue.
const SEARCH_TIMEOUT: Duration = Duration::from_millis(250);
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// A running tracker.
#[derive(Debug)]
pub(super) struct RunningTracker {
    pub(super) admin: AdminService,
    pub(super) service: Arc<TrackerService>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) peer: PeerId,
    pub(super) listen: Vec<Endpoint>,
    pub(super) backend: String,
    pub(super) started: Instant,
}

impl RunningTracker {
    async fn search(
        &self,
        pattern: &str,
        cursor: Option<&str>,
        limit: usize,
        events: &Events,
    ) -> Result<(), Failure> {
        if pattern.len() > MAX_QUERY {
            return Err(Failure::usage(format!("the pattern is longer than {MAX_QUERY} bytes")));
        }
        let invalid = |_| Failure::usage(InvalidCursor);
        let cursor = cursor.map(|text| URL_SAFE_NO_PAD.decode(text)).transpose().map_err(invalid)?;
        let ListPage { files, cursor } = self.list(pattern, cursor, limit.clamp(1, MAX_LIST)).await?;
        let files = files.into_iter().map(CatalogueLine::from).collect();
        let next = cursor.map(|cursor| URL_SAFE_NO_PAD.encode(cursor));
        events.send(Event::Catalogue(CataloguePage { files, next })).await;
        Ok(())
    }

    /// Reads pages of a list until there are `limit` files or [`SEARCH_TIMEOUT`] has passed.
    async fn list(
        &self,
        pattern: &str,
        cursor: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<ListPage, CatalogueError> {
        let (mut list, until) = (ListPage { files: Vec::new(), cursor }, Instant::now() + SEARCH_TIMEOUT);
        loop {
            let (wanted, now) = (limit - list.files.len(), SystemClock.now());
            let page =
                self.service.lookups().list(pattern, list.cursor.as_deref(), wanted, None, now).await?;
            list.files.extend(page.files);
            list.cursor = page.cursor;
            if list.cursor.is_none() || list.files.len() >= limit || until <= Instant::now() {
                return Ok(list);
            }
        }
    }

    async fn file(&self, query: &str, events: &Events) -> Result<(), Failure> {
        let (lookups, now) = (self.service.lookups(), SystemClock.now());
        let file = lookups.find(query, None, now).await?;
        let providers = lookups.providers(&file.id, true, now).await?.unwrap_or_default();
        let versions = self.list(&Pattern::exactly(&file.name), None, MAX_VERSIONS).await?.files;
        events.send(Event::FileDetail(FileDetail::new(file, providers, versions))).await;
        Ok(())
    }

    async fn online_peers(&self, cursor: Option<&str>, limit: usize, events: &Events) -> Result<(), Failure> {
        let invalid = |_| Failure::usage(InvalidCursor);
        let after = cursor.map(str::parse::<u64>).transpose().map_err(invalid)?.map(PeerNumber);
        let limit = limit.clamp(1, MAX_LIST);
        let (peers, next) = self.admin.catalogue.online_peers(after, limit, SystemClock.now()).await?;
        let peers = peers.into_iter().map(|online| OnlinePeer {
            peer: online.peer,
            endpoints: online.endpoints,
            files: online.files as u64,
            lease_until_ms: online.until,
        });
        let page = PeerPage { peers: peers.collect(), next: next.map(|number| number.0.to_string()) };
        events.send(Event::OnlinePeers(page)).await;
        Ok(())
    }

    async fn status(&self) -> Result<TrackerNodeStatus, Failure> {
        let status = self.service.status().await?;
        let pins = status.store.map(|store| StoreUsage {
            count: store.pins,
            bytes: store.reserved,
            quota: store.quota,
        });
        let latency = |operation: Operation| {
            let latencies = self.storage.metrics()?.latencies(operation);
            let quantile = |share| latencies.quantile(share).as_secs_f64() * 1000.0;
            Some(StorageLatency {
                operation: operation.name().to_owned(),
                count: latencies.count(),
                p50_ms: quantile(0.5),
                p99_ms: quantile(0.99),
            })
        };
        Ok(TrackerNodeStatus {
            peer: self.peer,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            listen: self.listen.clone(),
            backend: self.backend.clone(),
            files: status.files,
            peers: status.peers,
            admission: if self.admin.is_invite_only() { "invite" } else { "open" }.to_owned(),
            pins,
            storage: Operation::ALL.into_iter().filter_map(latency).collect(),
        })
    }
}

#[async_trait]
impl Execute for RunningTracker {
    async fn execute(&self, command: Command, input: Input, events: Events) -> Result<(), Failure> {
        match command {
            Command::Search { pattern, cursor, limit } => {
                self.search(&pattern, cursor.as_deref(), limit, &events).await
            }
            Command::File { query } => self.file(&query, &events).await,
            Command::OnlinePeers { cursor, limit } => {
                self.online_peers(cursor.as_deref(), limit, &events).await
            }
            Command::Status => {
                events.send(Event::TrackerStatus(self.status().await?)).await;
                Ok(())
            }
            Command::Watch => {
                let status = || async { self.status().await.ok().map(Event::TrackerStatus) };
                watch(&events, STATUS_INTERVAL, status).await;
                Ok(())
            }
            command => self.admin.execute(command, input, events).await,
        }
    }
}
