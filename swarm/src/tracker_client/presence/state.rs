//! The state that the workers of a presence share: the active worker and the session of each catalogue, and the unsent changes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::tracker_client::client::Renewal;
use crate::tracker_client::error::TrackerError;
use crate::tracker_client::offers::Acknowledgement;
use enjambre_core::protocol::message::SessionGrant;
use enjambre_core::runtime::HashMap;
use enjambre_core::{CatalogueId, Endpoint, FileId, Gap, Name, Offer, Publication, SessionId, UnixMillis};

/// The maximum number of unsent changes. Beyond it the session ends, and the next one announces all offers.
const MAX_CHANGES: usize = 10_000;

/// The time for which a replaced session is reported.
const REPLACED_MEMORY: Duration = Duration::from_secs(600);
/// The time before a session is opened again after another process has replaced one.
const REPLACED_DELAY: Duration = Duration::from_secs(15);

/// Minimum time between two reactions to gaps.
const MIN_GAP_INTERVAL: Duration = Duration::from_secs(5);

/// Minimum age of a failure before a request ends the backoff.
const RECENT: Duration = Duration::from_secs(1);

/// The phase of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connects or opens a session.
    #[default]
    Starting,
    /// Has a session.
    Connected,
    /// Another worker has the session of the same catalogue.
    Standby,
    /// Waits before the next attempt.
    Failed,
}

/// The state of the worker of one tracker.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerState {
    pub(super) phase: Phase,
    pub(super) catalogue: Option<CatalogueId>,
    pub(super) last_error: Option<String>,
    /// The time of the last failure.
    pub(super) failed_at: Option<Instant>,
}

/// The state of one catalogue.
#[derive(Debug, Default)]
pub(super) struct CatalogueState {
    /// The worker that has the session.
    pub(super) active: Option<usize>,
    pub(super) grant: Option<SessionGrant>,
    /// The time of the last write in the session, by the clock of the tracker.
    pub(super) written: UnixMillis,
    /// The known gaps of the catalogue, whose publications are in the outbox again, and when they changed.
    pub(super) gaps: Vec<Gap>,
    pub(super) gaps_changed: Option<Instant>,
    /// Whether publications returned to the outbox because of gaps.
    pub(super) has_lost: bool,
    /// Whether all offers from before the session were announced in it.
    pub(super) announced: bool,
    /// Whether a request failed, so that the worker is to check the tracker.
    pub(super) suspect: bool,
    /// The names that the catalogue refused when the outbox was last sent.
    pub(super) refused: Arc<HashSet<(FileId, Name)>>,
    /// The unsent changes of the session: an offer, or `None` for a withdrawal.
    changes: HashMap<FileId, Option<Offer>>,
    /// Offers of files that the catalogue does not contain. They are announced again, because the files may be published later.
    unknown: HashMap<FileId, Offer>,
}

impl CatalogueState {
    /// Records a change for the current session. Ignored without a session, because a new session announces all offers.
    pub(super) fn change(&mut self, id: FileId, offer: Option<Offer>) {
        if self.grant.is_none() {
            return;
        }
        self.changes.insert(id, offer);
        if self.changes.len() > MAX_CHANGES {
            self.end_session();
        }
    }

    /// Returns up to `limit` unsent changes without removing them.
    pub(super) fn some_changes(&self, limit: usize) -> Vec<(FileId, Option<Offer>)> {
        self.changes.iter().take(limit).map(|(id, offer)| (*id, *offer)).collect()
    }

    /// Records announced offers. The catalogue does not contain the files in `unknown`.
    pub(super) fn announced(&mut self, offers: &[Offer], unknown: &HashSet<FileId>) {
        for offer in offers {
            if !unknown.contains(&offer.id) {
                self.unknown.remove(&offer.id);
            } else if self.unknown.len() < MAX_CHANGES {
                self.unknown.insert(offer.id, *offer);
            }
        }
    }

    /// The offers of files that the catalogue does not contain.
    pub(super) fn unknown(&self) -> Vec<Offer> {
        self.unknown.values().copied().collect()
    }

    /// Removes sent changes, except those that changed again meanwhile.
    pub(super) fn sent(&mut self, changes: &[(FileId, Option<Offer>)]) {
        for (id, offer) in changes {
            if self.changes.get(id) == Some(offer) {
                self.changes.remove(id);
            }
            if offer.is_none() {
                self.unknown.remove(id);
            }
        }
    }

    pub(super) fn begin_session(&mut self, grant: SessionGrant) {
        self.end_session();
        self.grant = Some(grant);
    }

    pub(super) fn end_session(&mut self) {
        self.changes.clear();
        self.unknown.clear();
        self.grant = None;
        self.written = UnixMillis::default();
        self.announced = false;
    }

    /// Records a renewal. Returns whether the advertised endpoints changed.
    pub(super) fn renewed(&mut self, renewal: &Renewal) -> bool {
        let Some(grant) = &mut self.grant else { return false };
        let changed = grant.endpoints != renewal.endpoints;
        grant.endpoints.clone_from(&renewal.endpoints);
        changed
    }

    /// Returns the unknown ones of these gaps. Limits how often a tracker can cause repetitions.
    pub(super) fn new_gaps(&self, gaps: &[Gap]) -> Vec<Gap> {
        if self.gaps_changed.is_some_and(|at| at.elapsed() < MIN_GAP_INTERVAL) {
            return Vec::new();
        }
        gaps.iter().filter(|gap| !self.gaps.contains(gap)).copied().collect()
    }

    /// Records the gaps. A session that may have written in one of the new ones ends, so that the next one announces all
    /// files, without those that were withdrawn.
    pub(super) fn set_gaps(&mut self, gaps: &[Gap], new: &[Gap]) {
        self.gaps = gaps.to_vec();
        self.gaps_changed = Some(Instant::now());
        self.has_lost = true;
        let Some(grant) = &self.grant else { return };
        if new.iter().any(|gap| gap.after_ms < self.written && grant.now_ms <= gap.until_ms) {
            tracing::info!("the catalogue may lack recent writes; announcing all files again");
            self.end_session();
        }
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.grant.as_ref().map(|grant| grant.session)
    }

    /// The endpoints of this peer that the catalogue gives to other peers.
    pub(super) fn advertised(&self) -> &[Endpoint] {
        self.grant.as_ref().map_or(&[], |grant| &grant.endpoints)
    }
}

/// The state of a presence.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) workers: Vec<WorkerState>,
    /// The catalogues of the workers.
    pub(super) catalogues: HashMap<CatalogueId, CatalogueState>,
    /// The last time at which another process replaced a session.
    pub(super) replaced: Option<Instant>,
    /// Incremented when the outbox has more publications.
    pub(super) outbox: u64,
    /// The number of publications that were sent.
    pub(super) sent: u64,
    /// The publications whose results callers wait for.
    pub(super) watched: Vec<(Publication, mpsc::UnboundedSender<PublishResult>)>,
}

/// The result of sending a publication to a catalogue.
pub(super) type PublishResult = (CatalogueId, Result<Acknowledgement, TrackerError>);

impl State {
    /// Whether another process replaced a session recently.
    pub(super) fn was_replaced(&self) -> bool {
        self.replaced.is_some_and(|at| at.elapsed() < REPLACED_MEMORY)
    }

    /// The earliest time to open a session, at which tracker ever: two processes with one key must not replace each other's
    /// sessions all the time.
    pub(super) fn open_session_at(&self) -> Option<Instant> {
        self.replaced.map(|at| at + REPLACED_DELAY)
    }

    /// Records the catalogue of a worker. Catalogues that no tracker serves any more are forgotten.
    pub(super) fn set_catalogue(&mut self, worker: usize, catalogue: CatalogueId) {
        self.workers[worker].catalogue = Some(catalogue);
        let workers = &self.workers;
        self.catalogues.retain(|id, _| workers.iter().any(|worker| worker.catalogue == Some(*id)));
    }

    /// Makes workers that wait before their next attempt try at once if no tracker is connected, unless they failed just now or
    /// a session must not be opened yet.
    pub(super) fn end_backoff(&mut self) {
        let is_early = self.open_session_at().is_some_and(|at| at > Instant::now());
        if is_early || self.workers.iter().any(|worker| worker.phase == Phase::Connected) {
            return;
        }
        for worker in &mut self.workers {
            if worker.phase == Phase::Failed && worker.failed_at.is_none_or(|at| at.elapsed() >= RECENT) {
                worker.phase = Phase::Starting;
            }
        }
    }

    /// Reports the results of this publication to the sender until its receiver is dropped.
    pub(super) fn watch_publication(
        &mut self,
        publication: Publication,
        sender: mpsc::UnboundedSender<PublishResult>,
    ) {
        self.watched.retain(|(_, sender)| !sender.is_closed());
        self.watched.push((publication, sender));
    }

    /// Reports the result of a publication to the callers that wait for it.
    pub(super) fn report(&mut self, publication: &Publication, result: &PublishResult) {
        self.sent += 1;
        self.watched
            .retain(|(watched, sender)| watched != publication || sender.send(result.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn grant() -> SessionGrant {
        SessionGrant {
            session: SessionId([1; 16]),
            now_ms: UnixMillis(1),
            gaps: Vec::new(),
            lease_ms: 1,
            endpoints: Vec::new(),
            membership: None,
        }
    }

    #[test]
    fn changes_stay_until_their_latest_value_is_sent() {
        let id = FileId::from_bytes([1; 32]);
        let offer = |complete| Some(Offer { id, size: 1, complete });
        let mut state = CatalogueState::default();
        state.change(id, offer(false));
        assert!(state.some_changes(10).is_empty(), "no changes are recorded without a session");
        state.begin_session(grant());
        state.change(id, offer(false));
        let sent = state.some_changes(10);
        state.change(id, offer(true));
        state.sent(&sent);
        assert_eq!(state.some_changes(10), [(id, offer(true))]);
    }

    #[test]
    fn session_that_may_have_written_in_a_gap_ends() {
        let gap = |after, until| Gap { after_ms: UnixMillis(after), until_ms: UnixMillis(until) };
        // The session began at 1, and last wrote at 100.
        for (gap, ends) in
            [(gap(50, 80), true), (gap(0, 1), true), (gap(100, 200), false), (gap(0, 0), false)]
        {
            let mut state = CatalogueState::default();
            state.begin_session(grant());
            state.written = UnixMillis(100);
            assert_eq!(state.new_gaps(&[gap]), [gap]);
            state.set_gaps(&[gap], &[gap]);
            assert_eq!(state.session().is_none(), ends, "{gap:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tracker_with_ever_more_gaps_is_not_followed() {
        let gap = |n| Gap { after_ms: UnixMillis(n), until_ms: UnixMillis(n) };
        let mut state = CatalogueState::default();
        state.set_gaps(&[gap(1)], &[gap(1)]);
        assert!(state.new_gaps(&[gap(2)]).is_empty());
        advance(MIN_GAP_INTERVAL).await;
        assert_eq!(state.new_gaps(&[gap(1), gap(2)]), [gap(2)]);
    }

    #[test]
    fn too_many_changes_end_the_session() {
        let mut state = CatalogueState::default();
        state.begin_session(grant());
        for n in 0..=u32::try_from(MAX_CHANGES).unwrap() {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            state.change(FileId::from_bytes(id), None);
        }
        assert!(state.session().is_none() && state.some_changes(1).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn request_ends_the_backoff_of_an_older_failure_only() {
        let failed =
            WorkerState { phase: Phase::Failed, failed_at: Some(Instant::now()), ..WorkerState::default() };
        let mut state = State { workers: vec![failed], ..State::default() };
        state.end_backoff();
        assert_eq!(state.workers[0].phase, Phase::Failed, "it failed just now");
        advance(RECENT).await;
        state.workers.push(WorkerState { phase: Phase::Connected, ..WorkerState::default() });
        state.end_backoff();
        assert_eq!(state.workers[0].phase, Phase::Failed, "another tracker is connected");
        state.workers.pop();
        state.replaced = Some(Instant::now());
        state.end_backoff();
        assert_eq!(state.workers[0].phase, Phase::Failed, "a session must not be opened yet");
        advance(REPLACED_DELAY).await;
        state.end_backoff();
        assert_eq!(state.workers[0].phase, Phase::Starting);
    }
}
