//! The presence of a peer in every catalogue: it opens a session, announces the offers, sends the outbox, renews the lease and
//! leaves.
//!
//! Each tracker has a worker. Among the trackers of one catalogue only one worker has the session. The offers and publications
//! come from the library ([`OfferSource`]), so they survive outages of trackers and restarts of this process.

mod lease;
mod reachability;
mod shared;
mod state;
mod worker;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::TrackerClient;
use super::error::{TrackerError, UnreachableTracker};
use super::offers::{Acknowledgement, OfferSource};
use super::trackers::Trackers;
use crate::change::ChangeNotifier;
use crate::membership::members::Members;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::PinStatus;
use enjambre_core::runtime;
use enjambre_core::{CatalogueId, Endpoint, FileId, KeyPair, Name, Offer, PeerId, Publication, SessionId};
use shared::Shared;
use state::{Phase, State, WorkerState};

/// The time limit of a publication or a pin, including the wait for a tracker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum time between two attempts to find an open session.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The warning after another process replaced the session.
const REPLACED_WARNING: &str = "another process uses the key of this peer, so that each interrupts the other; give each peer \
    its own data directory, which must not be a copy";
/// The time limit of leaving.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of pages of pins that are requested from one tracker: more than it needs for the largest number of pins.
const MAX_PIN_PAGES: usize = 100;

/// The state of a replica at a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinProgress {
    /// The number of bytes stored so far.
    pub stored: u64,
    /// Whether the replica is complete and durable.
    pub complete: bool,
}

/// The state of the connection to one tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerState {
    /// The tracker.
    pub endpoint: Endpoint,
    /// Its catalogue, once it is known.
    pub catalogue: Option<CatalogueId>,
    /// Whether this tracker or another one of its catalogue has the session of the peer.
    pub connected: bool,
    /// Whether another tracker of the same catalogue has the session, and this one is its standby.
    pub standby: bool,
    /// The reason why it is not connected.
    pub last_error: Option<String>,
    /// The endpoints of this peer that the catalogue gives to other peers.
    pub advertised: Vec<Endpoint>,
    /// A problem with these endpoints and its remedy.
    pub warning: Option<String>,
}

/// A peer's presence with all its trackers.
#[derive(Debug)]
pub struct Presence {
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Presence {
    /// Starts the presence in the background. The peer advertises `endpoints`, at most
    /// [`MAX_ENDPOINTS`](enjambre_core::protocol::message::MAX_ENDPOINTS); see
    /// [`SessionProof::endpoints`](enjambre_core::protocol::message::SessionProof::endpoints).
    ///
    /// In an invite-only swarm the presence also keeps the membership state up to date.
    pub fn start(
        members: Option<Arc<Members>>,
        key: KeyPair,
        endpoints: Vec<Endpoint>,
        trackers: &Trackers,
        source: Arc<dyn OfferSource>,
    ) -> Self {
        let clients = trackers.clients().to_vec();
        let workers = vec![WorkerState::default(); clients.len()];
        let shared = Arc::new(Shared {
            key,
            endpoints,
            source,
            members,
            clients,
            state: Mutex::new(State { workers, ..State::default() }),
            changed: ChangeNotifier::default(),
        });
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        for (index, client) in shared.clients.iter().enumerate() {
            let worker = worker::Worker { shared: Arc::clone(&shared), index, client: Arc::clone(client) };
            runtime::spawn_in(&tasks, shutdown.clone().run_until_cancelled_owned(worker.run()));
        }
        tasks.close();
        Self { shared, shutdown, tasks }
    }

    /// The id of the peer.
    pub fn peer(&self) -> PeerId {
        self.shared.key.peer_id()
    }

    /// Announces a new or changed offer, which the library already contains.
    pub fn offer(&self, offer: Offer) {
        self.change(offer.id, Some(offer));
    }

    /// Withdraws an offer, which the library no longer contains.
    pub fn withdraw(&self, id: FileId) {
        self.change(id, None);
    }

    fn change(&self, id: FileId, offer: Option<Offer>) {
        self.shared.update(|state| {
            for catalogue in state.catalogues.values_mut() {
                catalogue.change(id, offer);
            }
        });
    }

    /// Publishes a name that the outbox of the library already contains. Wakes the workers, which send the outbox, and
    /// returns the acknowledgement of the first catalogue.
    ///
    /// # Errors
    /// [`TrackerError::Unreachable`] if no tracker is reachable; the publication stays in the outbox and is sent later.
    /// [`TrackerError::Refused`] if every catalogue with a session refuses it.
    pub async fn publish(&self, publication: &Publication) -> Result<Acknowledgement, TrackerError> {
        let mut until = Instant::now() + REQUEST_TIMEOUT;
        let (sender, mut results) = mpsc::unbounded_channel();
        let mut sent = self.shared.update(|state| {
            state.watch_publication(publication.clone(), sender);
            state.outbox += 1;
            state.end_backoff();
            state.sent
        });
        // A worker may have sent the publication before this call: it also sends what it announces and the catalogue
        // does not know.
        let catalogues: Vec<CatalogueId> = self.shared.state.lock().catalogues.keys().copied().collect();
        let source = &self.shared.source;
        if let Some(acknowledged) =
            catalogues.into_iter().find_map(|id| source.acknowledgement(id, publication))
        {
            return Ok(acknowledged);
        }
        let mut refusals = HashMap::new();
        loop {
            let mut seen = self.shared.changed.version();
            while let Ok((catalogue, result)) = results.try_recv() {
                match result {
                    Ok(acknowledged) => return Ok(acknowledged),
                    Err(refusal) => {
                        refusals.insert(catalogue, refusal);
                    }
                }
            }
            let refused = |(catalogue, ..): &(CatalogueId, _, _)| refusals.contains_key(catalogue);
            let failures = self.shared.failures();
            if (failures.is_some() || self.shared.sessions().iter().all(refused))
                && let Some(refusal) = refusals.values().next()
            {
                return Err(TrackerError::clone(refusal));
            }
            if let Some(reasons) = failures {
                return Err(TrackerError::Unreachable { reasons });
            }
            // Earlier publications in the outbox are sent first, however many there are.
            let now_sent = self.shared.state.lock().sent;
            if sent != now_sent {
                (sent, until) = (now_sent, Instant::now() + REQUEST_TIMEOUT);
            }
            let changed = timeout_at(until, self.shared.changed.changed(&mut seen));
            // After the shutdown no worker reports results.
            if !matches!(self.shutdown.run_until_cancelled(changed).await, Some(Ok(()))) {
                return Err(self.shared.timed_out());
            }
        }
    }

    /// Pins a file at a tracker whose catalogue contains it, or returns the progress of an earlier pin. Poll it for progress.
    pub async fn pin(&self, id: FileId) -> Result<PinProgress, TrackerError> {
        self.with_any(|session, client| async move {
            let (stored, complete) = client.pin(session, id).await?;
            Ok(PinProgress { stored, complete })
        })
        .await
    }

    /// Unpins a file.
    pub async fn unpin(&self, id: FileId) -> Result<(), TrackerError> {
        self.with_any(|session, client| async move { client.unpin(session, id).await }).await
    }

    /// Lists the pins of the peer at all catalogues, by ascending id, and one error for each catalogue whose pins are missing.
    ///
    /// # Errors
    /// If the pins of no catalogue are known.
    pub async fn pins(&self) -> Result<(Vec<PinStatus>, Vec<TrackerError>), TrackerError> {
        // Waits for a session that the tracker accepts, and then for the other trackers.
        self.with_any(|session, client| async move { client.pins(session, None).await }).await?;
        self.wait_connected(REQUEST_TIMEOUT).await;
        let sessions = self.shared.sessions();
        let requested: HashSet<_> = sessions.iter().map(|(catalogue, ..)| *catalogue).collect();
        let lists = sessions.into_iter().map(|(_, session, client)| async move {
            let (mut list, mut after) = (Vec::new(), None);
            for _ in 0..MAX_PIN_PAGES {
                let (page, next) = client.pins(session, after).await?;
                list.extend(page);
                after = next;
                if after.is_none() {
                    break;
                }
            }
            Ok::<_, TrackerError>(list)
        });
        let (mut known, mut errors) = (Vec::new(), Vec::new());
        for list in join_all(lists).await {
            match list {
                Ok(list) => known.push(list),
                Err(error) => errors.push(error),
            }
        }
        if known.is_empty() {
            return Err(errors.pop().unwrap_or_else(|| self.shared.timed_out()));
        }
        // The other catalogues, each with its trackers. A tracker whose catalogue is not known counts as one.
        let mut missing: Vec<(Option<CatalogueId>, Vec<UnreachableTracker>)> = Vec::new();
        for TrackerState { endpoint, catalogue, last_error, .. } in self.status() {
            if catalogue.is_some_and(|catalogue| requested.contains(&catalogue)) {
                continue;
            }
            let reason = last_error.unwrap_or_else(|| format!("not connected to tracker {endpoint}"));
            let tracker = UnreachableTracker { endpoint, reason };
            match missing.iter_mut().find(|(known, _)| known.is_some() && *known == catalogue) {
                Some((_, trackers)) => trackers.push(tracker),
                None => missing.push((catalogue, vec![tracker])),
            }
        }
        errors.extend(missing.into_iter().map(|(_, reasons)| TrackerError::Unreachable { reasons }));
        let mut pins = known.concat();
        pins.sort_by_key(|pin| pin.id);
        Ok((pins, errors))
    }

    /// Sends a request to all catalogues and returns the first success. Waits for a session if none is open.
    async fn with_any<T, F>(
        &self,
        request: impl Fn(SessionId, Arc<TrackerClient>) -> F,
    ) -> Result<T, TrackerError>
    where
        F: Future<Output = Result<T, TrackerError>>,
    {
        let until = Instant::now() + REQUEST_TIMEOUT;
        self.shared.update(State::end_backoff);
        let mut tried = HashSet::new();
        let mut refusal = None;
        loop {
            let mut running: FuturesUnordered<_> = self
                .shared
                .sessions()
                .into_iter()
                .filter(|(_, session, client)| tried.insert((*session, client.endpoint().clone())))
                .map(|(catalogue, session, client)| {
                    let endpoint = client.endpoint().clone();
                    let reply = request(session, client);
                    async move { (catalogue, session, endpoint, reply.await) }
                })
                .collect();
            while let Ok(Some((catalogue, session, endpoint, result))) =
                timeout_at(until, running.next()).await
            {
                match result {
                    Ok(value) => return Ok(value),
                    Err(error) if error.is_unauthorized() => {
                        // The worker opens another session.
                        self.shared.end_session(catalogue, session, &error);
                    }
                    Err(error) if error.code().is_none_or(|code| code == ErrorCode::Storage) => {
                        // The tracker or its database is unreachable. The worker checks it, and the request is repeated after
                        // the next change.
                        tried.remove(&(session, endpoint));
                        self.shared.suspect(catalogue);
                    }
                    Err(error) => refusal = Some(error),
                }
            }
            drop(running);
            let mut seen = self.shared.changed.version();
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            if let Some(reasons) = self.shared.failures() {
                return Err(TrackerError::Unreachable { reasons });
            }
            // The timeout covers changes during the requests.
            let change = self.shared.changed.changed(&mut seen);
            let change = timeout_at(until.min(Instant::now() + RETRY_INTERVAL), change);
            // After the shutdown no worker reports changes.
            let left = self.shutdown.run_until_cancelled(change).await.is_none();
            if left || Instant::now() >= until {
                return Err(self.shared.timed_out());
            }
        }
    }

    /// The names of the outbox that all catalogues refused. They are published again at intervals. Blocks for a moment if
    /// there are many.
    pub fn refused(&self) -> HashSet<(FileId, Name)> {
        let mut refused: Vec<_> = {
            let state = self.shared.state.lock();
            state.catalogues.values().map(|catalogue| Arc::clone(&catalogue.refused)).collect()
        };
        let Some(last) = refused.pop() else { return HashSet::new() };
        last.iter().filter(|name| refused.iter().all(|other| other.contains(*name))).cloned().collect()
    }

    /// The state of each tracker connection, in the order of the configuration.
    pub fn status(&self) -> Vec<TrackerState> {
        let state = self.shared.state.lock();
        let tracker_state = |(worker, client): (&WorkerState, &Arc<TrackerClient>)| {
            let endpoint = client.endpoint().clone();
            let catalogue = worker.catalogue.and_then(|id| state.catalogues.get(&id));
            let catalogue = catalogue.filter(|catalogue| catalogue.session().is_some());
            let advertised = catalogue.map_or_else(Vec::new, |catalogue| catalogue.advertised().to_vec());
            let warning = match catalogue {
                _ if state.was_replaced() => Some(REPLACED_WARNING.to_owned()),
                Some(_) => reachability::warning(&self.shared.endpoints, &advertised, &endpoint),
                None => None,
            };
            TrackerState {
                endpoint,
                catalogue: worker.catalogue,
                connected: matches!(worker.phase, Phase::Connected | Phase::Standby),
                standby: worker.phase == Phase::Standby,
                last_error: worker.last_error.clone(),
                advertised,
                warning,
            }
        };
        state.workers.iter().zip(&self.shared.clients).map(tracker_state).collect()
    }

    /// Waits until every tracker is connected or has failed, at most for the time `limit`. Returns whether one is connected.
    pub async fn wait_connected(&self, limit: Duration) -> bool {
        let settled = |state: &State| state.workers.iter().all(|worker| worker.phase != Phase::Starting);
        let _ = timeout(limit, self.shared.wait(settled)).await;
        self.shared.state.lock().workers.iter().any(|worker| worker.phase == Phase::Connected)
    }

    /// Stops the workers and ends the session in every catalogue. Takes at most two seconds.
    pub async fn leave(&self) {
        self.shutdown.cancel();
        let leave_all = async {
            self.tasks.wait().await;
            let leave = |(_, session, client): (CatalogueId, SessionId, Arc<TrackerClient>)| async move {
                if let Err(error) = client.leave(session).await {
                    tracing::debug!(tracker = %client.endpoint(), %error, "leaving failed");
                }
            };
            futures::future::join_all(self.shared.sessions().into_iter().map(leave)).await;
        };
        if timeout(LEAVE_TIMEOUT, leave_all).await.is_err() {
            tracing::info!("leaving timed out; the lease will expire");
        }
    }
}
