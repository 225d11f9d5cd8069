//! Keeps a peer alive in every catalogue: says hello, announces what the peer offers, renews, publishes from the
//! outbox, and says goodbye.
//!
//! There is a worker for each tracker; among the trackers of one catalogue one worker at a time speaks
//! for the peer. What the peer offers and has published comes from its library ([`OfferSource`]), so nothing is
//! lost when trackers or this process are away.

mod backoff;
mod state;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::TrackerClient;
use super::error::{TrackerError, Unreached};
use super::offers::OfferSource;
use super::trackers::Trackers;
use crate::admission::members::Members;
use crate::model::endpoint::Endpoint;
use crate::model::id::{FileId, PeerId};
use crate::model::identity::KeyPair;
use crate::model::record::{Offer, Publication};
use crate::news::News;
use crate::protocol::error::ErrorCode;
use crate::protocol::message::{CatalogueId, SessionId};
use state::{Phase, State, WorkerState};

/// How long a publication or a pin waits for a tracker.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a publication or a pin looks for a session that can be used.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// The catalogue that acknowledged first.
    pub catalogue: CatalogueId,
    /// The version of the name there.
    pub version: u64,
    /// False where the file was the newest version already, be it because the outbox was a moment faster.
    pub new: bool,
}

/// How far a tracker's copy of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinProgress {
    /// The bytes that it has.
    pub have: u64,
    /// Whether it holds the whole file, durably.
    pub held: bool,
}

/// How a peer does with one tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerState {
    /// The tracker.
    pub endpoint: Endpoint,
    /// Its catalogue, once it was reached.
    pub catalogue: Option<CatalogueId>,
    /// Whether it is reached: it has the peer's session, or another tracker of its catalogue has.
    pub connected: bool,
    /// Whether another tracker of the same catalogue has the session and this one is for when that one fails.
    pub standby: bool,
    /// Why it is not reached.
    pub last_error: Option<String>,
    /// Where other peers are told to find this one.
    pub told: Vec<Endpoint>,
    /// What is wrong with that, and what to do.
    pub warning: Option<String>,
}

struct Shared {
    key: KeyPair,
    endpoints: Vec<Endpoint>,
    source: Arc<dyn OfferSource>,
    /// What is known of the swarm, where it is by invitation.
    members: Option<Arc<Members>>,
    clients: Vec<Arc<TrackerClient>>,
    state: Mutex<State>,
    /// The changes of `state`.
    changed: News,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("state", &*self.state.lock()).finish_non_exhaustive()
    }
}

impl Shared {
    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock());
        self.changed.tell();
        result
    }

    /// Waits until this holds.
    async fn wait(&self, holds: impl Fn(&State) -> bool) {
        self.changed.until(|| holds(&self.state.lock())).await;
    }

    fn end_session(&self, catalogue: CatalogueId, session: SessionId) {
        self.update(|state| {
            if let Some(known) = state.catalogues.get_mut(&catalogue)
                && known.session() == Some(session)
            {
                known.end_session();
            }
        });
    }

    /// The worker of the catalogue is to find out whether somebody is there. Wakes nobody where it is to do so already: several
    /// who ask in vain would else wake each other without end.
    fn suspect(&self, catalogue: CatalogueId) {
        let suspect = |state: &mut State| {
            std::mem::replace(&mut state.catalogues.entry(catalogue).or_default().suspect, true)
        };
        let already = suspect(&mut self.state.lock());
        if !already {
            self.changed.tell();
        }
    }

    /// The sessions that can be used now, and the trackers that have them.
    fn sessions(&self) -> Vec<(CatalogueId, SessionId, Arc<TrackerClient>)> {
        let state = self.state.lock();
        let mut sessions: Vec<_> = state
            .catalogues
            .iter()
            .filter_map(|(id, catalogue)| {
                let at = catalogue.active?;
                Some((at, *id, catalogue.session()?))
            })
            .collect();
        sessions.sort_by_key(|(at, ..)| *at);
        sessions
            .into_iter()
            .filter_map(|(at, id, session)| Some((id, session, Arc::clone(self.clients.get(at)?))))
            .collect()
    }

    /// Why no tracker is reached, if all were tried.
    fn failures(&self) -> Option<Vec<Unreached>> {
        let state = self.state.lock();
        let failed = |worker: &WorkerState| worker.phase == Phase::Failed;
        if !state.workers.iter().all(failed) {
            return None;
        }
        let reasons = state.workers.iter().zip(&self.clients).map(|(worker, client)| Unreached {
            endpoint: client.endpoint().clone(),
            reason: worker.last_error.clone().unwrap_or_default(),
        });
        Some(reasons.collect())
    }
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
    /// Begins to keep the peer alive in the background. `endpoints` is what it advertises, at most
    /// [`crate::protocol::message::MAX_ENDPOINTS`]; see [`crate::protocol::message::HelloProof::endpoints`].
    pub fn start(
        key: KeyPair,
        endpoints: Vec<Endpoint>,
        trackers: &Trackers,
        source: Arc<dyn OfferSource>,
    ) -> Self {
        Self::start_in(None, key, endpoints, trackers, source)
    }

    /// The same in a swarm by invitation: keeps the peer's membership and the list of revocations new as well.
    pub fn start_in(
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
            changed: News::default(),
        });
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        for (at, client) in shared.clients.iter().enumerate() {
            let worker = worker::Worker { shared: Arc::clone(&shared), at, client: Arc::clone(client) };
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(worker.run()));
        }
        tasks.close();
        Self { shared, shutdown, tasks }
    }

    /// Who the peer is.
    pub fn peer(&self) -> PeerId {
        self.shared.key.peer_id()
    }

    /// The peer offers the file from now on, or offers more of it than before. The library says so already.
    pub fn offer(&self, offer: Offer) {
        self.change(offer.id, Some(offer));
    }

    /// The peer no longer offers the file. The library does not have it any more already.
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

    /// Publishes what is in the outbox of the library already; returns when the first catalogue acknowledged. The
    /// other catalogues get it from the outbox. [`TrackerError::Unreachable`] once all trackers were tried in vain;
    /// the publication then stays in the outbox and is made later.
    pub async fn publish(&self, publication: &Publication) -> Result<Acknowledged, TrackerError> {
        let source = &self.shared.source;
        let published = self
            .with_any(|catalogue, session, client| async move {
                let (version, new) = client.publish(session, publication).await?;
                if let Err(error) = source.mark_published(catalogue, publication).await {
                    tracing::warn!(%error, "a publication is made again, as it could not be noted");
                }
                Ok(Acknowledged { catalogue, version, new })
            })
            .await;
        self.shared.update(|state| state.outbox += 1);
        published
    }

    /// Asks a tracker that has the file to keep a copy of it, or how far that is. To be asked again now and then.
    pub async fn pin(&self, id: FileId) -> Result<PinProgress, TrackerError> {
        self.with_any(|_, session, client| async move {
            let (have, held) = client.pin(session, id).await?;
            Ok(PinProgress { have, held })
        })
        .await
    }

    /// Tells the trackers that the copy is no longer needed.
    pub async fn unpin(&self, id: FileId) -> Result<(), TrackerError> {
        self.with_any(|_, session, client| async move { client.unpin(session, id).await }).await
    }

    /// The first success with any catalogue. Waits for a session where there is none yet.
    async fn with_any<T, F>(
        &self,
        ask: impl Fn(CatalogueId, SessionId, Arc<TrackerClient>) -> F,
    ) -> Result<T, TrackerError>
    where
        F: Future<Output = Result<T, TrackerError>>,
    {
        let until = Instant::now() + PATIENCE;
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
                    let answer = ask(catalogue, session, client);
                    async move { (catalogue, session, endpoint, answer.await) }
                })
                .collect();
            while let Ok(Some((catalogue, session, endpoint, result))) =
                timeout_at(until, running.next()).await
            {
                match result {
                    Ok(value) => return Ok(value),
                    Err(error) if error.code() == Some(ErrorCode::Unauthorized) => {
                        // Its worker begins another session.
                        self.shared.end_session(catalogue, session);
                    }
                    Err(error) if error.code().is_none_or(|code| code == ErrorCode::Storage) => {
                        // Nobody is there, or no database behind it: its worker finds out, and once there is news it is tried
                        // again.
                        tried.remove(&(session, endpoint));
                        self.shared.suspect(catalogue);
                    }
                    Err(error) => refusal = Some(error),
                }
            }
            drop(running);
            let mut seen = self.shared.changed.count();
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            if let Some(reasons) = self.shared.failures() {
                return Err(TrackerError::Unreachable { reasons });
            }
            // Looked at again now and then too: there may have been news while the answers were waited for.
            let news = self.shared.changed.beyond(&mut seen);
            let news = timeout_at(until.min(Instant::now() + LOOK_AGAIN), news);
            // Where the peer leaves, nobody finds out anything more.
            let left = self.shutdown.run_until_cancelled(news).await.is_none();
            if left || Instant::now() >= until {
                let late = |client: &Arc<TrackerClient>| Unreached {
                    endpoint: client.endpoint().clone(),
                    reason: format!("{} did not answer in time", client.endpoint()),
                };
                let reasons = self.shared.clients.iter().map(late).collect();
                return Err(TrackerError::Unreachable { reasons });
            }
        }
    }

    /// How the peer does with each tracker, in the order of the configuration.
    pub fn status(&self) -> Vec<TrackerState> {
        let state = self.shared.state.lock();
        let of = |(worker, client): (&WorkerState, &Arc<TrackerClient>)| {
            let endpoint = client.endpoint().clone();
            let told = worker
                .catalogue
                .and_then(|id| state.catalogues.get(&id))
                .map_or_else(Vec::new, |catalogue| catalogue.told().to_vec());
            let loopback = !told.is_empty() && told.iter().all(Endpoint::is_loopback);
            let warning = (loopback && !endpoint.is_loopback()).then(|| {
                "others are told a loopback address only, so peers on other machines cannot reach this one; \
                 set transport.advertise to an address that they can reach"
                    .to_owned()
            });
            TrackerState {
                endpoint,
                catalogue: worker.catalogue,
                connected: matches!(worker.phase, Phase::Connected | Phase::Standby),
                standby: worker.phase == Phase::Standby,
                last_error: worker.last_error.clone(),
                told,
                warning,
            }
        };
        state.workers.iter().zip(&self.shared.clients).map(of).collect()
    }

    /// Waits until the peer is known to every catalogue that can be reached, at most so long; says whether it is
    /// known to any.
    pub async fn connected(&self, at_most: Duration) -> bool {
        let settled = |state: &State| state.workers.iter().all(|worker| worker.phase != Phase::Starting);
        let _ = timeout(at_most, self.shared.wait(settled)).await;
        self.shared.state.lock().workers.iter().any(|worker| worker.phase == Phase::Connected)
    }

    /// Stops, and says goodbye to every catalogue; takes at most two seconds.
    pub async fn leave(&self) {
        self.shutdown.cancel();
        let goodbye = async {
            self.tasks.wait().await;
            let leave = |(_, session, client): (CatalogueId, SessionId, Arc<TrackerClient>)| async move {
                if let Err(error) = client.leave(session).await {
                    tracing::debug!(tracker = %client.endpoint(), %error, "could not say goodbye");
                }
            };
            futures::future::join_all(self.shared.sessions().into_iter().map(leave)).await;
        };
        if timeout(GOODBYE, goodbye).await.is_err() {
            tracing::info!("a tracker did not take the goodbye in time; the lease runs out by itself");
        }
    }
}
