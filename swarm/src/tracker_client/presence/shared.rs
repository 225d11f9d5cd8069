//! The state of a presence, shared with its workers.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::state::{Phase, State, WorkerState};
use crate::change::ChangeNotifier;
use crate::membership::members::Members;
use crate::tracker_client::client::TrackerClient;
use crate::tracker_client::error::{TrackerError, UnreachableTracker};
use crate::tracker_client::offers::OfferSource;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::{CatalogueId, Endpoint, KeyPair, SessionId};

pub(super) struct Shared {
    pub(super) key: KeyPair,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) source: Arc<dyn OfferSource>,
    /// The membership state, in an invite-only swarm.
    pub(super) members: Option<Arc<Members>>,
    pub(super) clients: Vec<Arc<TrackerClient>>,
    pub(super) state: Mutex<State>,
    /// Notifies of changes of `state`.
    pub(super) changed: ChangeNotifier,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("state", &*self.state.lock()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Changes the state and notifies the waiters.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock());
        self.changed.notify();
        result
    }

    /// Waits until the state fulfils the condition.
    pub(super) async fn wait(&self, holds: impl Fn(&State) -> bool) {
        self.changed.wait_until(|| holds(&self.state.lock())).await;
    }

    /// Ends the session because of this error, unless it has ended already.
    pub(super) fn end_session(&self, catalogue: CatalogueId, session: SessionId, error: &TrackerError) {
        self.update(|state| {
            let Some(known) = state.catalogues.get_mut(&catalogue) else { return };
            if known.session() != Some(session) {
                return;
            }
            known.end_session();
            if error.code() == Some(ErrorCode::Replaced) {
                if !state.was_replaced() {
                    tracing::warn!(%error, "session replaced; retrying");
                }
                state.replaced = Some(Instant::now());
            }
        });
    }

    /// Requests that the worker of the catalogue checks its tracker. Notifies only for a new request. Otherwise concurrent
    /// callers of an unreachable tracker would wake each other endlessly.
    pub(super) fn suspect(&self, catalogue: CatalogueId) {
        let suspect = |state: &mut State| {
            std::mem::replace(&mut state.catalogues.entry(catalogue).or_default().suspect, true)
        };
        let already = suspect(&mut self.state.lock());
        if !already {
            self.changed.notify();
        }
    }

    /// The open sessions and their trackers.
    pub(super) fn sessions(&self) -> Vec<(CatalogueId, SessionId, Arc<TrackerClient>)> {
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

    /// The error if no tracker replies within the time limit.
    pub(super) fn timed_out(&self) -> TrackerError {
        let timed_out = |client: &Arc<TrackerClient>| UnreachableTracker::timed_out(client.endpoint());
        TrackerError::Unreachable { reasons: self.clients.iter().map(timed_out).collect() }
    }

    /// The errors of all trackers, or `None` if one of them is connected or not yet tried.
    pub(super) fn failures(&self) -> Option<Vec<UnreachableTracker>> {
        let state = self.state.lock();
        let failed = |worker: &WorkerState| worker.phase == Phase::Failed;
        if !state.workers.iter().all(failed) {
            return None;
        }
        let reasons = state.workers.iter().zip(&self.clients).map(|(worker, client)| UnreachableTracker {
            endpoint: client.endpoint().clone(),
            reason: worker.last_error.clone().unwrap_or_default(),
        });
        Some(reasons.collect())
    }
}
