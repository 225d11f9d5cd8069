//! Answers what peers ask of a tracker.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::nonce::Nonces;
use super::pace::Pace;
use super::pin::PinStore;
use super::settings::{TrackerSettings, millis};
use crate::catalogue::names::ListPage;
use crate::catalogue::peers::Session;
use crate::catalogue::{Catalogue, Task};
use crate::clock::Clock;
use crate::model::endpoint::Endpoint;
use crate::model::id::FileId;
use crate::model::record::Publication;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::lookup::{self, Lookup};
use crate::protocol::message::{
    HelloProof, MAX_ENDPOINTS, MAX_LIST, MAX_OFFERS, MAX_QUERY, Reply, Request, SessionId, StoreStatus,
    TrackerStatus, Welcome,
};
use crate::protocol::server::Handler;
use crate::transport::envelope::RequestId;
use crate::transport::{PeerInfo, ReplySink};

/// How long the last write of renewals may take.
const LAST_FLUSH: Duration = Duration::from_secs(2);
/// So many sessions may begin at once from one address, and one more in each of these milliseconds.
const SESSIONS: u64 = 128;
const SESSION_MS: u64 = 1000;
/// How old the count of living peers in a status may be, in milliseconds.
const STATUS_FRESH_MS: u64 = 1000;

/// The tracker's answers.
#[derive(Debug)]
pub struct TrackerService {
    catalogue: Arc<Catalogue>,
    settings: TrackerSettings,
    clock: Arc<dyn Clock>,
    nonces: Nonces,
    pace: Pace,
    store: Option<Arc<dyn PinStore>>,
    started: u64,
    /// Living peers and when they were counted.
    living: tokio::sync::Mutex<Option<(u64, u64)>>,
}

impl TrackerService {
    /// A service over a catalogue that was opened with the [`TrackerSettings::rules`] of the same settings.
    /// Without a store it keeps no copies.
    pub fn new(
        catalogue: Arc<Catalogue>,
        settings: TrackerSettings,
        clock: Arc<dyn Clock>,
        store: Option<Arc<dyn PinStore>>,
    ) -> Self {
        let started = clock.now_ms();
        Self {
            catalogue,
            settings,
            clock,
            nonces: Nonces::default(),
            pace: Pace::new(SESSION_MS, SESSIONS),
            store,
            started,
            living: tokio::sync::Mutex::default(),
        }
    }

    /// The catalogue behind it.
    pub const fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// Writes renewals down and clears away what is out of date, until the shutdown; then writes the last
    /// renewals. To be run as a task for as long as the service answers.
    pub async fn run(&self, shutdown: CancellationToken) {
        tokio::join!(
            shutdown.run_until_cancelled(self.flush_now_and_then()),
            shutdown.run_until_cancelled(self.sweep_now_and_then()),
            shutdown.run_until_cancelled(self.forget_now_and_then()),
        );
        match timeout(LAST_FLUSH, self.catalogue.flush(self.clock.now_ms())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last renewals could not be written"),
            Err(_) => tracing::warn!("the last renewals could not be written in time"),
        }
    }

    async fn flush_now_and_then(&self) {
        let mut ticks = interval(self.settings.flush_interval());
        loop {
            ticks.tick().await;
            if let Err(error) = self.catalogue.flush(self.clock.now_ms()).await {
                tracing::warn!(%error, "renewals could not be written; they are kept for the next time");
            }
        }
    }

    async fn sweep_now_and_then(&self) {
        if let Err(error) = self.catalogue.count().await {
            tracing::warn!(%error, "the catalogue could not be counted");
        }
        let mut ticks = interval(self.settings.sweep);
        loop {
            ticks.tick().await;
            if !self.is_our_turn(Task::Sweep, self.settings.sweep).await {
                continue;
            }
            match self.catalogue.sweep_peers(self.clock.now_ms()).await {
                Ok(swept) => tracing::debug!(?swept, "looked after the peers"),
                Err(error) => tracing::warn!(%error, "could not look after the peers"),
            }
        }
    }

    async fn forget_now_and_then(&self) {
        let mut ticks = interval(self.settings.forget_interval());
        // At the start nobody had the time yet to come back.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // What other trackers added.
            if let Err(error) = self.catalogue.count().await {
                tracing::warn!(%error, "the catalogue could not be counted");
            }
            if !self.is_our_turn(Task::Forget, self.settings.forget_interval()).await {
                continue;
            }
            match self.catalogue.forget_files(millis(self.settings.forget), self.clock.now_ms()).await {
                Ok(0) => {}
                Ok(files) => tracing::info!(files, "forgot files that nobody offers any more"),
                Err(error) => tracing::warn!(%error, "could not look after the files"),
            }
        }
    }

    async fn is_our_turn(&self, task: Task, period: Duration) -> bool {
        let turn = self.catalogue.take_turn(task, millis(period), self.clock.now_ms()).await;
        turn.unwrap_or_else(|error| {
            tracing::warn!(%error, ?task, "could not find out whether another tracker looks after it");
            false
        })
    }

    /// The session that somebody shows. Where it is known who that is, it has to be its own: others that get to know one can do
    /// nothing with it.
    async fn session(&self, session: SessionId, asker: &PeerInfo) -> Result<Session, ErrorReply> {
        let session = self.catalogue.authorize(session, self.clock.now_ms()).await?;
        if asker.identity.is_some_and(|identity| identity != session.peer) {
            return Err(unauthorized("the session belongs to another key than the connection"));
        }
        Ok(session)
    }

    async fn hello(&self, proof: Option<HelloProof>, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let now = self.clock.now_ms();
        let catalogue = self.catalogue.id();
        let nonce = self.nonces.make(peer.connection, now);
        let Some(proof) = proof else { return Ok(Reply::Hello { catalogue, nonce, welcome: None }) };
        if proof.endpoints.len() > MAX_ENDPOINTS {
            return Err(malformed(format!("a peer has at most {MAX_ENDPOINTS} endpoints")));
        }
        if !self.nonces.is_valid(proof.nonce, peer.connection, now) {
            return Err(unauthorized("the nonce is not one of the last minute on this connection"));
        }
        let signed = HelloProof::signed_bytes(catalogue, proof.nonce, &proof.endpoints);
        if !proof.key.verifies(&signed, &proof.signature) {
            return Err(unauthorized("the signature is not one of this key"));
        }
        let id = proof.key.peer_id();
        if peer.identity.is_some_and(|identity| identity != id) {
            return Err(unauthorized("the connection belongs to another key"));
        }
        let endpoints = as_seen(proof.endpoints, peer.address)?;
        self.pace.take(peer.address, now).map_err(|wait| {
            let busy = ErrorReply::new(ErrorCode::Busy, "too many sessions begin from this address");
            busy.retry_after(Duration::from_millis(wait))
        })?;
        let session = self.catalogue.hello(id, endpoints.clone(), now).await?;
        tracing::debug!(peer = %id.short(), ?endpoints, "a peer began a session");
        let welcome = Welcome { session, lease_ms: millis(self.settings.lease), endpoints, membership: None };
        Ok(Reply::Hello { catalogue, nonce, welcome: Some(welcome) })
    }

    async fn providers(&self, id: FileId, asker: &PeerInfo) -> Result<Reply, ErrorReply> {
        let near = is_near(asker);
        let now = self.clock.now_ms();
        let Some(providers) = self.catalogue.providers_for(&id, near, now).await? else {
            return Err(ErrorReply::new(ErrorCode::NotFound, format!("{id} is not in the catalogue")));
        };
        Ok(Reply::Providers { providers })
    }

    async fn pin(&self, by: Session, id: FileId) -> Result<Reply, ErrorReply> {
        let store = self.store()?;
        let now = self.clock.now_ms();
        let file = self.catalogue.file(&id, now).await?;
        let file = file
            .ok_or_else(|| ErrorReply::new(ErrorCode::NotFound, format!("{id} is not in the catalogue")))?;
        let pin = self.catalogue.pin(id, file.size, store.quota(), by.peer, now).await?;
        let have = store.keep(&file, pin).await?;
        Ok(Reply::Pin { have, held: pin.held })
    }

    async fn unpin(&self, by: Session, id: FileId) -> Result<Reply, ErrorReply> {
        let store = self.store()?;
        // Anybody may look for ids; nobody may take away what another one asked to be kept.
        if self.catalogue.pinned(&id).await?.is_none_or(|pin| pin.by != by.peer) {
            return Err(ErrorReply::new(ErrorCode::NotFound, format!("{id} is not pinned by this peer")));
        }
        // In this order the room is free only once it is really free.
        store.discard(&id).await?;
        self.catalogue.unpin(&id).await?;
        Ok(Reply::Done)
    }

    fn store(&self) -> Result<&Arc<dyn PinStore>, ErrorReply> {
        self.store.as_ref().ok_or_else(|| {
            let message =
                "this tracker keeps no copies; set [tracker.store] enabled = true in its configuration";
            ErrorReply::new(ErrorCode::Unsupported, message)
        })
    }

    async fn status(&self) -> Result<Reply, ErrorReply> {
        let now = self.clock.now_ms();
        let peers = {
            // Whoever asks at the same time waits here for the one count.
            let mut living = self.living.lock().await;
            match *living {
                Some((count, at)) if now.checked_sub(at).is_some_and(|age| age < STATUS_FRESH_MS) => count,
                _ => {
                    let count = self.catalogue.living(now).await?;
                    *living = Some((count, now));
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
        Ok(Reply::TrackerStatus(TrackerStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: now.saturating_sub(self.started),
            files: self.catalogue.versions(),
            peers,
            store,
        }))
    }

    async fn answer(&self, request: Request, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let now = self.clock.now_ms();
        match request {
            Request::Hello { proof } => self.hello(proof, peer).await,
            Request::Publish { session, name, id, size, kind } => {
                let session = self.session(session, peer).await?;
                let publication = Publication { name, id, size, kind };
                let published = self.catalogue.publish(&session, &publication, now).await?;
                tracing::debug!(
                    peer = %session.peer.short(), name = %publication.name, id = %id.short(),
                    version = published.version, new = published.new, "published"
                );
                Ok(Reply::Published { version: published.version, new: published.new })
            }
            Request::Announce { session, offers } => {
                check_count(offers.len())?;
                let session = self.session(session, peer).await?;
                Ok(Reply::Announced { unknown: self.catalogue.announce(&session, &offers, now).await? })
            }
            Request::Withdraw { session, ids } => {
                check_count(ids.len())?;
                let session = self.session(session, peer).await?;
                self.catalogue.withdraw(&session, &ids).await?;
                Ok(Reply::Done)
            }
            Request::Renew { session, .. } => {
                let session = self.session(session, peer).await?;
                self.catalogue.renew(session.id, now).await?;
                Ok(Reply::Done)
            }
            Request::Leave { session } => {
                let session = self.session(session, peer).await?;
                self.catalogue.leave(session.id, now).await?;
                Ok(Reply::Done)
            }
            Request::Pin { session, id } => self.pin(self.session(session, peer).await?, id).await,
            Request::Unpin { session, id } => self.unpin(self.session(session, peer).await?, id).await,
            Request::Find { query } => {
                check_length(&query)?;
                Ok(Reply::Find { file: self.catalogue.find(&query, now).await? })
            }
            Request::Providers { id } => self.providers(id, peer).await,
            Request::List { pattern, cursor, limit } => {
                check_length(&pattern)?;
                let limit = usize::try_from(limit).unwrap_or(MAX_LIST).clamp(1, MAX_LIST);
                let ListPage { files, cursor } =
                    self.catalogue.list(&pattern, cursor.as_deref(), limit, now).await?;
                Ok(Reply::List { files, cursor })
            }
            Request::Status => self.status().await,
            _ => Err(ErrorReply::new(ErrorCode::Unsupported, "a tracker does not answer this; ask a peer")),
        }
    }
}

#[async_trait]
impl Handler for TrackerService {
    fn answer_at_once(&self, header: &[u8], peer: &PeerInfo) -> Option<Bytes> {
        let (id, lookup) = lookup::read(header)?;
        let now = self.clock.now_ms();
        match lookup {
            Lookup::Find { query } => {
                let answers = self.catalogue.find_remembered(query, now)?;
                Some(lookup::reply(id, &answers.found))
            }
            Lookup::Providers { id: file } => {
                Some(self.catalogue.providers_remembered(&file, is_near(peer), now)?.finish(id))
            }
        }
    }

    async fn handle(
        &self,
        _id: RequestId,
        request: Request,
        peer: &PeerInfo,
        _sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        Ok((self.answer(request, peer).await?, Bytes::new()))
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn malformed(problem: String) -> ErrorReply {
    ErrorReply::new(ErrorCode::Malformed, problem)
}

fn unauthorized(problem: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::Unauthorized, problem)
}

/// Whether somebody asks from this machine itself.
fn is_near(asker: &PeerInfo) -> bool {
    asker.address.is_none_or(|address| address.to_canonical().is_loopback())
}

fn check_count(count: usize) -> Result<(), ErrorReply> {
    if count <= MAX_OFFERS {
        return Ok(());
    }
    let message = format!("one request names at most {MAX_OFFERS} files, not {count}");
    Err(ErrorReply::new(ErrorCode::TooLarge, message))
}

fn check_length(text: &str) -> Result<(), ErrorReply> {
    if text.len() <= MAX_QUERY {
        Ok(())
    } else {
        Err(malformed(format!("at most {MAX_QUERY} bytes can be asked for")))
    }
}

/// The endpoints that others are told: where the host means every address, the address that is seen here. Whose they are
/// is said beside them.
fn as_seen(endpoints: Vec<Endpoint>, address: Option<IpAddr>) -> Result<Vec<Endpoint>, ErrorReply> {
    let mut seen = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        if endpoint.port() == 0 {
            return Err(malformed(format!("nobody can reach {endpoint}: its port is 0")));
        }
        let endpoint = match address {
            Some(address) if endpoint.is_unspecified() => endpoint.with_address(address.to_canonical()),
            _ => endpoint,
        }
        .with_id(None);
        if !seen.contains(&endpoint) {
            seen.push(endpoint);
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_means_every_address_becomes_the_address_that_is_seen() {
        let given = ["zmq://0.0.0.0:7710", "zmq://[::]:7710", "zmq://peer.example.org:1"];
        let given: Vec<Endpoint> = given.map(|text| text.parse().unwrap()).to_vec();
        let seen = as_seen(given.clone(), Some("::ffff:10.0.0.7".parse().unwrap())).unwrap();
        let seen: Vec<_> = seen.iter().map(Endpoint::to_string).collect();
        assert_eq!(seen, ["zmq://10.0.0.7:7710", "zmq://peer.example.org:1"]);
        assert_eq!(as_seen(given.clone(), None).unwrap(), given);
        assert!(as_seen(vec!["zmq://0.0.0.0:0".parse().unwrap()], None).is_err());
    }
}
