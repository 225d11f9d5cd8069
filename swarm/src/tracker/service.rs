//! The request handler of a tracker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::announced_endpoints::{announced_endpoints, is_local};
use super::lookups::Lookups;
use super::metrics::TrackerMetrics;
use super::nonce::Nonces;
use super::pin_store::PinStore;
use super::settings::TrackerSettings;
use crate::catalogue::Catalogue;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::PinId;
use crate::catalogue::list::ListPage;
use crate::catalogue::peers::{NewSession, Session};
use crate::catalogue::pins::share_of;
use crate::catalogue::sweep::pause_after_scan;
use crate::rate_limit::gcra::RateLimit;
use crate::rate_limit::per_address::AddressRateLimit;
use enjambre_core::model::endpoint;
use enjambre_core::model::time::millis;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::lookup::{self, Lookup};
use enjambre_core::protocol::message::{
    MAX_ENDPOINTS, MAX_LIST, MAX_OFFERS, MAX_PINS, MAX_QUERY, Reply, Request, SessionGrant, SessionProof,
    StoreStatus, TrackerStatus,
};
use enjambre_core::protocol::server::Handler;
use enjambre_core::runtime::clock::Clock;
use enjambre_core::{
    EncodedRequest, Endpoint, FileId, PeerId, PeerInfo, Publication, ReplySink, RequestId, SessionId,
    UnixMillis,
};

/// The limit of log messages about replaced sessions, and about requests beyond a limit.
const REPORTS: RateLimit = RateLimit { burst: 10, interval: Duration::from_secs(60) };

/// Handles the requests of a tracker.
#[derive(Debug)]
pub struct TrackerService {
    pub(super) catalogue: Arc<Catalogue>,
    lookups: Lookups,
    me: PeerId,
    pub(super) settings: TrackerSettings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: TrackerMetrics,
    nonces: Nonces,
    /// The limit of new sessions and changes of endpoints, each of which makes all cached lookups void.
    session_limit: AddressRateLimit,
    /// The states of [`REPORTS`].
    replaced_reports: Mutex<UnixMillis>,
    full_reports: Mutex<UnixMillis>,
    store: Option<Arc<dyn PinStore>>,
    announced_hosts: Vec<String>,
    started: UnixMillis,
    /// The number of living peers, and the earliest time of the next count.
    alive_peers: tokio::sync::Mutex<Option<(u64, Instant)>>,
}

impl TrackerService {
    /// The service of the tracker `me` on a catalogue that was opened with the [`TrackerSettings::rules`] of the same settings.
    /// Without a store it refuses pins.
    pub fn new(
        catalogue: Arc<Catalogue>,
        me: PeerId,
        settings: TrackerSettings,
        clock: Arc<dyn Clock>,
        store: Option<Arc<dyn PinStore>>,
    ) -> Self {
        let started = clock.now();
        let lookups = Lookups::new(Arc::clone(&catalogue), settings.lookup_cache_bytes());
        Self {
            catalogue,
            lookups,
            me,
            settings,
            clock,
            metrics: TrackerMetrics::default(),
            nonces: Nonces::default(),
            session_limit: AddressRateLimit::new(settings.session_limit()),
            replaced_reports: Mutex::default(),
            full_reports: Mutex::default(),
            store,
            announced_hosts: Vec::new(),
            started,
            alive_peers: tokio::sync::Mutex::default(),
        }
    }

    /// Permits peers to announce these hosts, in addition to their own addresses; `*` permits all.
    #[must_use]
    pub fn with_announced_hosts(self, announced_hosts: Vec<String>) -> Self {
        Self { announced_hosts, ..self }
    }

    /// The lookups in the catalogue.
    pub const fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// The metrics.
    pub const fn metrics(&self) -> &TrackerMetrics {
        &self.metrics
    }

    /// The catalogue.
    pub const fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// Returns the session with this id. On an authenticated connection the session must belong to the same peer, and a session
    /// that was opened on one is not valid on others, so that a leaked session id is useless to other peers and to trackers.
    async fn session(&self, session: SessionId, peer: &PeerInfo) -> Result<Session, ErrorReply> {
        let now = self.clock.now();
        let session = self.catalogue.authorize(session, now).await.inspect_err(|error| {
            if matches!(error, CatalogueError::Replaced) {
                self.report_replaced(peer, now);
            }
        })?;
        if peer.identity.is_some_and(|identity| identity != session.peer) {
            return Err(unauthorized("the session belongs to another key than the connection"));
        }
        if session.authenticated && peer.identity.is_none() {
            return Err(unauthorized("the session was opened on an encrypted connection"));
        }
        Ok(session)
    }

    fn report_replaced(&self, peer: &PeerInfo, now: UnixMillis) {
        if is_due(&self.replaced_reports, now) {
            tracing::warn!(
                address = peer.address.map(tracing::field::display),
                identity = peer.identity.map(tracing::field::display),
                "session replaced: two processes use the same key; give each peer its own data directory"
            );
        }
    }

    /// Returns the endpoints that other peers receive.
    fn announced(
        &self,
        id: PeerId,
        requested: &[Endpoint],
        peer: &PeerInfo,
    ) -> Result<Vec<Endpoint>, ErrorReply> {
        announced_endpoints(requested, peer, |endpoint| {
            id == self.me || self.is_permitted_host(endpoint.host())
        })
    }

    fn is_permitted_host(&self, host: &str) -> bool {
        self.announced_hosts.iter().any(|permitted| permitted == "*" || permitted.eq_ignore_ascii_case(host))
    }

    async fn open_session(&self, proof: Option<SessionProof>, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let now = self.clock.now();
        let catalogue = self.catalogue.id();
        let nonce = self.nonces.issue(peer.connection, now);
        let Some(proof) = proof else { return Ok(Reply::OpenSession { catalogue, nonce, grant: None }) };
        if proof.endpoints.len() > MAX_ENDPOINTS {
            return Err(malformed(format!("too many endpoints; the limit is {MAX_ENDPOINTS}")));
        }
        // An invalid endpoint is malformed, whatever the proof.
        let id = proof.key.peer_id();
        let announced = self.announced(id, &proof.endpoints, peer)?;
        if !self.nonces.accept(proof.nonce, peer, now) {
            return Err(unauthorized(
                "the nonce is expired, was used before or belongs to another connection",
            ));
        }
        // Before the verification of the signature, which takes much longer than a lookup.
        self.session_limit.take(peer.address, now).map_err(|wait| {
            let busy = ErrorReply::new(ErrorCode::Busy, "too many new sessions from this address");
            busy.retry_after(wait)
        })?;
        // Only on such a connection does the peer know the tracker.
        let tracker = peer.identity.map(|_| self.me);
        let signed = SessionProof::signed_bytes(tracker, catalogue, proof.nonce, &proof.endpoints);
        if !proof.key.verifies(&signed, &proof.signature) {
            return Err(unauthorized("the signature is not valid for this key"));
        }
        if peer.identity.is_some_and(|identity| identity != id) {
            return Err(unauthorized("the connection belongs to another key"));
        }
        let requested = if announced == proof.endpoints { Vec::new() } else { proof.endpoints };
        let new = NewSession { announced: announced.clone(), requested, authenticated: tracker.is_some() };
        let session = self.catalogue.open_session(id, new, now).await?;
        tracing::debug!(peer = %id.short(), endpoints = endpoint::list(&announced), "session opened");
        let lease_ms = millis(self.settings.lease);
        let gaps = self.catalogue.gaps();
        let grant =
            SessionGrant { session, now_ms: now, gaps, lease_ms, endpoints: announced, membership: None };
        Ok(Reply::OpenSession { catalogue, nonce, grant: Some(grant) })
    }

    async fn renew(&self, by: Session, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let now = self.clock.now();
        let lease = self.catalogue.lease(&by, now).await?;
        let mut endpoints = lease.endpoints.clone();
        if !lease.requested.is_empty() {
            let current = self.announced(by.peer, &lease.requested, peer)?;
            // Beyond the limit the change waits for a later renewal.
            if current != endpoints && self.session_limit.take(peer.address, now).is_ok() {
                self.catalogue.set_endpoints(&by, &current, now).await?;
                tracing::debug!(peer = %by.peer.short(), endpoints = endpoint::list(&current), "endpoints of the peer changed");
                endpoints = current;
            }
        }
        self.catalogue.renew(by.id, now).await?;
        // The store of the tracker itself shows nothing about the peers.
        self.metrics.renewals.add(u64::from(by.peer != self.me));
        let gaps = self.catalogue.gaps();
        Ok(Reply::Renewed { now_ms: now, gaps, endpoints, membership: None, revocations: None, more: false })
    }

    /// Runs a lookup that the cache has not answered.
    async fn timed<T>(&self, lookup: impl Future<Output = T>) -> T {
        let start = std::time::Instant::now();
        let found = lookup.await;
        self.metrics.lookups.record(start.elapsed());
        found
    }

    async fn providers(&self, id: FileId, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let now = self.clock.now();
        let Some(providers) = self.lookups.providers(&id, is_local(peer), now).await? else {
            return Err(not_in_catalogue(&id));
        };
        Ok(Reply::Providers { providers })
    }

    async fn pin(&self, by: Session, file: FileId) -> Result<Reply, ErrorReply> {
        let store = self.store()?;
        let (id, now) = (PinId { file, by: by.peer }, self.clock.now());
        let file = self.lookups.file(&file, None, now).await?.ok_or_else(|| not_in_catalogue(&file))?;
        let (size, quota) = (file.size, share_of(store.quota()));
        // The claim of another peer may be false, so only content proves it.
        if file.publisher == by.peer && size > quota && self.catalogue.pinned(&id).await?.is_none() {
            let reserved = self.catalogue.reserved_by(&by.peer).await?.bytes;
            return Err(CatalogueError::QuotaFull { size, reserved, quota }.into());
        }
        let (stored, complete) = store.pin(&id).await?;
        Ok(Reply::Pin { stored, complete })
    }

    async fn unpin(&self, by: Session, file: FileId) -> Result<Reply, ErrorReply> {
        let store = self.store()?;
        let id = PinId { file, by: by.peer };
        if self.catalogue.pinned(&id).await?.is_none() {
            return Err(ErrorReply::new(ErrorCode::NotFound, format!("{file} is not pinned by this peer")));
        }
        store.unpin(&id).await?;
        Ok(Reply::Done)
    }

    fn store(&self) -> Result<&Arc<dyn PinStore>, ErrorReply> {
        self.store.as_ref().ok_or_else(|| {
            let message =
                "this tracker stores no replicas; set [tracker.store] enabled = true in its configuration";
            ErrorReply::new(ErrorCode::Unsupported, message)
        })
    }

    /// Returns the status of the tracker.
    pub async fn status(&self) -> Result<TrackerStatus, CatalogueError> {
        let peers = {
            // Concurrent requests wait for one count.
            let mut cached = self.alive_peers.lock().await;
            let start = Instant::now();
            match *cached {
                Some((count, until)) if start < until => count,
                _ => {
                    let count = self.catalogue.count_alive_peers(self.clock.now()).await?;
                    *cached = Some((count, Instant::now() + pause_after_scan(start.elapsed())));
                    count
                }
            }
        };
        let store = match &self.store {
            Some(store) => {
                let reserved = self.catalogue.reserved().await?;
                Some(StoreStatus { quota: store.quota(), reserved: reserved.bytes, pins: reserved.pins })
            }
            None => None,
        };
        Ok(TrackerStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(self.clock.now().saturating_since(self.started)),
            files: self.catalogue.versions(),
            peers,
            store,
        })
    }

    async fn reply(&self, request: Request, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let now = self.clock.now();
        match request {
            Request::OpenSession { proof } => self.open_session(proof, peer).await,
            Request::Publish { session, name, id, size, kind, again } => {
                let session = self.session(session, peer).await?;
                let publication = Publication { name, id, size, kind };
                let published = self.catalogue.publish_or_repeat(&session, &publication, again, now).await?;
                tracing::debug!(
                    peer = %session.peer.short(), name = %publication.name, id = %id.short(),
                    version = published.version, new = published.new, "file published"
                );
                Ok(Reply::Published { version: published.version, new: published.new })
            }
            Request::Announce { session, offers } => {
                check_count(offers.len())?;
                let session = self.session(session, peer).await?;
                let announced = self.catalogue.announce(&session, &offers, now);
                let unknown =
                    self.catalogue.change_in_turn(&session, peer.address, offers.len(), announced).await?;
                Ok(Reply::Announced { unknown })
            }
            Request::Withdraw { session, ids } => {
                check_count(ids.len())?;
                let session = self.session(session, peer).await?;
                let withdrawn = self.catalogue.withdraw(&session, &ids);
                self.catalogue.change_in_turn(&session, peer.address, ids.len(), withdrawn).await?;
                Ok(Reply::Done)
            }
            Request::Renew { session, .. } => self.renew(self.session(session, peer).await?, peer).await,
            Request::Leave { session } => {
                let session = self.session(session, peer).await?;
                self.catalogue.leave(session.id, now).await?;
                Ok(Reply::Done)
            }
            Request::Pin { session, id } => self.pin(self.session(session, peer).await?, id).await,
            Request::Unpin { session, id } => self.unpin(self.session(session, peer).await?, id).await,
            Request::Pins { session, after } => {
                let session = self.session(session, peer).await?;
                let (pins, after) = self.catalogue.pins_of(session.peer, after, MAX_PINS).await?;
                Ok(Reply::Pins { pins, after })
            }
            Request::Find { query } => {
                check_length(&query)?;
                let find = self.lookups.find(&query, peer.address, now);
                Ok(Reply::Find { file: self.timed(find).await? })
            }
            Request::Providers { id } => self.timed(self.providers(id, peer)).await,
            Request::List { pattern, cursor, limit } => {
                check_length(&pattern)?;
                let limit = usize::try_from(limit).unwrap_or(MAX_LIST).clamp(1, MAX_LIST);
                let ListPage { files, cursor } =
                    self.lookups.list(&pattern, cursor.as_deref(), limit, peer.address, now).await?;
                Ok(Reply::List { files, cursor })
            }
            Request::Status => Ok(Reply::TrackerStatus(self.status().await?)),
            _ => Err(ErrorReply::new(
                ErrorCode::Unsupported,
                "trackers do not support this request; send it to a peer",
            )),
        }
    }
}

#[async_trait]
impl Handler for TrackerService {
    fn answer_immediately(&self, request: &EncodedRequest, peer: &PeerInfo) -> Option<Bytes> {
        let lookup = lookup::decode(request)?;
        let now = self.clock.now();
        let reply = match lookup {
            Lookup::Find { query } => {
                let answers = self.lookups.cached_find(query, now)?;
                lookup::reply(request.id(), &answers.to(is_local(peer)).found)
            }
            Lookup::Providers { id: file } => {
                self.lookups.cached_providers(&file, is_local(peer), now)?.finish(request.id())
            }
        };
        self.metrics.cached_lookups.add(1);
        Some(reply)
    }

    async fn handle(
        &self,
        _id: RequestId,
        request: Request,
        peer: &PeerInfo,
        _sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let replied = self.reply(request, peer).await;
        if let Err(error) = &replied
            && error.code == ErrorCode::Full
            && is_due(&self.full_reports, self.clock.now())
        {
            let address = peer.address.map(tracing::field::display);
            tracing::warn!(address, reason = %error.message, "request refused: full");
        }
        Ok((replied?, Bytes::new()))
    }
}

/// Returns whether a message may be logged.
fn is_due(reports: &Mutex<UnixMillis>, now: UnixMillis) -> bool {
    let mut full_at = reports.lock();
    let (next, report) = REPORTS.take(*full_at, now);
    *full_at = next;
    report.is_ok()
}

fn malformed(problem: String) -> ErrorReply {
    ErrorReply::new(ErrorCode::Malformed, problem)
}

fn not_in_catalogue(id: &FileId) -> ErrorReply {
    ErrorReply::new(ErrorCode::NotFound, format!("{id} is not in the catalogue"))
}

fn unauthorized(problem: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::Unauthorized, problem)
}

fn check_count(count: usize) -> Result<(), ErrorReply> {
    if count <= MAX_OFFERS {
        return Ok(());
    }
    let message = format!("too many files in one request: {count}; the limit is {MAX_OFFERS}");
    Err(ErrorReply::new(ErrorCode::TooLarge, message))
}

fn check_length(text: &str) -> Result<(), ErrorReply> {
    if text.len() <= MAX_QUERY {
        Ok(())
    } else {
        Err(malformed(format!("the query is longer than {MAX_QUERY} bytes")))
    }
}
