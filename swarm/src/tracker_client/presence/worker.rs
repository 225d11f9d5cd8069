//! The worker of one tracker. Among the workers of one catalogue only one is active:
//!
//! ```text
//! Starting --catalogue known--> Standby --no active worker--> Connected
//!    ^                                                           |
//!    '---- backoff ----- Failed <------- no reply ---------------'
//! ```
//! A session belongs to the catalogue, so the worker that takes over continues it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::lease::Lease;
use super::shared::Shared;
use super::state::{CatalogueState, Phase, State};
use crate::tracker_client::client::TrackerClient;
use crate::tracker_client::error::{TrackerError, UnreachableTracker};
use crate::tracker_client::offers::Acknowledgement;
use enjambre_core::model::endpoint;
use enjambre_core::model::membership::Invalid;
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::MAX_OFFERS;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::{CatalogueId, Gap, Offer, Publication, StorageError, UnixMillis};

/// The time during which changes are collected before they are sent.
const COLLECT_TIME: Duration = Duration::from_millis(20);
/// The minimum time limit of a renewal, for short leases.
const MIN_RENEWAL_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of publications that are read at once.
const OUTBOX_PAGE: usize = 100;
/// The backoff between attempts to connect.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// The number of attempts of an announcement that a tracker is too busy for.
const BUSY_ATTEMPTS: u32 = 20;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// The index of this worker.
    pub(super) index: usize,
    pub(super) client: Arc<TrackerClient>,
}

/// An error that ends an attempt to keep a session.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    #[error("library storage failed: {0}")]
    Library(#[from] StorageError),
    #[error("the membership state of the tracker is not valid: {0}; check swarm.authority")]
    Membership(#[from] Invalid),
    #[error("the swarm is invite-only, but swarm.authority is not set; join with `enjambre join`")]
    InviteOnly,
}

impl SessionError {
    /// Returns whether the session or the peer is not authorized.
    fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Tracker(error) if error.is_unauthorized())
    }

    /// Returns whether another process replaced the session.
    fn is_replaced(&self) -> bool {
        matches!(self, Self::Tracker(error) if error.code() == Some(ErrorCode::Replaced))
    }
}

impl Worker {
    /// Runs until the future is dropped.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        loop {
            let Err(failure) = self.attempt(&mut backoff).await;
            let error = failure.to_string();
            let replaced = failure.is_replaced();
            self.shared.update(|state| {
                let logged = replaced && state.was_replaced();
                let worker = &mut state.workers[self.index];
                // A repeated failure is logged once, and a replaced session where it ends.
                if worker.last_error.as_ref() != Some(&error) && !logged {
                    let tracker = self.client.endpoint();
                    match failure {
                        SessionError::Tracker(TrackerError::Unreachable { .. }) => {
                            tracing::info!(%tracker, %error, "tracker connection failed; retrying");
                        }
                        _ => tracing::warn!(%tracker, %error, "tracker session failed; retrying"),
                    }
                }
                worker.phase = Phase::Failed;
                worker.last_error = Some(error);
                worker.failed_at = Some(Instant::now());
                for catalogue in state.catalogues.values_mut() {
                    if catalogue.active == Some(self.index) {
                        catalogue.active = None;
                    }
                }
            });
            // A request of the user ends the wait.
            let requested = |state: &State| state.workers[self.index].phase != Phase::Failed;
            let _ = timeout(backoff.next_jittered(), self.shared.wait(requested)).await;
            if replaced {
                self.wait_after_replacement().await;
            }
        }
    }

    /// Waits until a session may be opened.
    async fn wait_after_replacement(&self) {
        let at = self.shared.state.lock().open_session_at();
        if let Some(at) = at {
            sleep_until(at).await;
        }
    }

    async fn attempt(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, SessionError> {
        let catalogue = self.client.query_catalogue().await?;
        loop {
            let mine = self.shared.update(|state| {
                state.set_catalogue(self.index, catalogue);
                let active = state.catalogues.entry(catalogue).or_default();
                let mine = *active.active.get_or_insert(self.index) == self.index;
                state.workers[self.index].phase = if mine { Phase::Starting } else { Phase::Standby };
                mine
            });
            if mine {
                break;
            }
            // The condition ignores unrelated changes, including those of this loop, so that workers do not wake each other.
            let is_vacant = |state: &State| {
                state.catalogues.get(&catalogue).is_none_or(|catalogue| catalogue.active.is_none())
            };
            self.shared.wait(is_vacant).await;
        }
        self.maintain(catalogue, backoff).await
    }

    /// Keeps the session and the catalogue up to date, as the active worker.
    async fn maintain(
        &self,
        catalogue: CatalogueId,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, SessionError> {
        let mut seen = self.shared.changed.version();
        let mut lease = self.session(catalogue).await?;
        let mut reopened = false;
        loop {
            let (outbox, session, suspect) = {
                let mut state = self.shared.state.lock();
                let outbox = state.outbox;
                let known = state.catalogues.entry(catalogue).or_default();
                if std::mem::take(&mut known.has_lost) {
                    lease.outbox = None;
                }
                (outbox, known.session(), std::mem::take(&mut known.suspect))
            };
            if session != Some(lease.session) {
                // It ended because of too many changes or an `unauthorized` reply.
                lease = self.session(catalogue).await?;
            }
            let sent = async {
                if suspect {
                    self.renew(&mut lease).await?;
                }
                if lease.outbox != Some(outbox) {
                    self.send_outbox(&mut lease).await?;
                }
                self.send_changes(&mut lease).await
            };
            match sent.await {
                Ok(()) => reopened = false,
                // The tracker does not know the session, for example after a restart: the next round opens a new one.
                Err(error) if error.is_unauthorized() && !error.is_replaced() && !reopened => {
                    reopened = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.set_connected();
            backoff.reset();
            tokio::select! {
                biased;
                () = sleep_until(lease.renew_at) => {
                    self.renew(&mut lease).await?;
                    if Instant::now() >= lease.announce_all_at {
                        self.announce_all(&mut lease).await?;
                    }
                    if Instant::now() >= lease.retry_at {
                        self.announce_unknown(&mut lease).await?;
                        // Refused publications are repeated too.
                        lease.outbox = None;
                    }
                }
                () = self.shared.changed.changed(&mut seen) => {
                    // Changes are collected, but a publication is sent at once: its caller waits.
                    let publication = self.shared.wait(|state| Some(state.outbox) != lease.outbox);
                    let _ = timeout(COLLECT_TIME, publication).await;
                }
            }
        }
    }

    fn set_connected(&self) {
        let known = self.shared.state.lock().workers[self.index].phase == Phase::Connected;
        if !known {
            tracing::info!(tracker = %self.client.endpoint(), "tracker connected");
            self.shared.update(|state| {
                let worker = &mut state.workers[self.index];
                worker.phase = Phase::Connected;
                worker.last_error = None;
            });
        }
    }

    /// Returns a session in which all offers are announced: the one of the previous worker, or a new one.
    async fn session(&self, catalogue: CatalogueId) -> Result<Lease, SessionError> {
        let known = {
            let state = self.shared.state.lock();
            let known = state.catalogues.get(&catalogue);
            known.and_then(|known| known.grant.clone().map(|grant| (grant, known.announced)))
        };
        if let Some((grant, announced)) = known {
            let mut lease = Lease::new(catalogue, &grant, Instant::now());
            match self.renew(&mut lease).await {
                Ok(()) => {
                    // The previous worker may have failed in between.
                    if !announced {
                        self.announce_all(&mut lease).await?;
                    }
                    return Ok(lease);
                }
                Err(error) if error.is_unauthorized() && !error.is_replaced() => {}
                Err(error) => return Err(error),
            }
        }
        self.shared.update(|state| state.workers[self.index].phase = Phase::Starting);
        self.wait_after_replacement().await;
        let start = Instant::now();
        let Shared { key, endpoints, .. } = &*self.shared;
        let (_, grant) = self.client.open_session(Some(catalogue), key, endpoints).await?;
        let mut lease = Lease::new(catalogue, &grant, start);
        let gaps = grant.gaps.clone();
        if let Some(members) = &self.shared.members {
            members.update(grant.membership.as_ref(), None).await?;
            // The first renewal returns the revocation list.
            lease.renew_at = start;
        } else if grant.membership.is_some() {
            // Without a membership gate this peer would serve non-members.
            return Err(SessionError::InviteOnly);
        }
        // Changes are recorded from here on. The library already contains the earlier ones.
        self.shared.update(|state| {
            state.catalogues.entry(catalogue).or_default().begin_session(grant);
        });
        self.fill_gaps(&lease, &gaps).await?;
        // The outbox precedes the announcements: callers wait for it, and its files cannot be announced before.
        self.send_outbox(&mut lease).await?;
        self.announce_all(&mut lease).await?;
        Ok(lease)
    }

    async fn renew(&self, lease: &mut Lease) -> Result<(), SessionError> {
        while self.renew_once(lease).await? {}
        Ok(())
    }

    /// Renews the lease. Returns whether the tracker has more revocation pages.
    async fn renew_once(&self, lease: &mut Lease) -> Result<bool, SessionError> {
        let start = Instant::now();
        // An unresponsive tracker must not use up the lease: another tracker has to receive the renewal in time, even if the
        // previous one was not written.
        let limit = (lease.interval / 2).max(MIN_RENEWAL_TIMEOUT);
        let known = self.shared.members.as_ref().map(|members| members.state());
        let renewed = timeout(limit, self.client.renew(lease.session, known)).await;
        let timed_out = |_| {
            let reasons = vec![UnreachableTracker::timed_out(self.client.endpoint())];
            Err(TrackerError::Unreachable { reasons })
        };
        let renewal = self.check(lease, renewed.unwrap_or_else(timed_out))?;
        lease.renewed(renewal.now, start);
        self.fill_gaps(lease, &renewal.gaps).await?;
        if self.of_session(lease, |catalogue| catalogue.renewed(&renewal)) == Some(true) {
            let (tracker, endpoints) = (self.client.endpoint(), endpoint::list(&renewal.endpoints));
            tracing::info!(%tracker, endpoints, "advertised endpoints changed");
        }
        let renewal = renewal.membership;
        let (Some(members), Some(known)) = (&self.shared.members, known) else { return Ok(false) };
        members.update(renewal.membership.as_ref(), renewal.revocations.as_ref()).await?;
        // Each page must advance the version, so that a faulty tracker cannot cause an endless loop.
        Ok(renewal.more && members.state().revocations > known.revocations)
    }

    /// Sends again what the catalogue may have lost, once per gap.
    async fn fill_gaps(&self, lease: &Lease, gaps: &[Gap]) -> Result<(), SessionError> {
        let new = self.of_session(lease, |known| known.new_gaps(gaps)).unwrap_or_default();
        if !new.is_empty() {
            self.shared.source.forget_acknowledgements(lease.catalogue, &new).await?;
            self.of_session(lease, |known| known.set_gaps(gaps, &new));
            self.shared.changed.notify();
        }
        Ok(())
    }

    /// Records that the tracker acknowledged a write. Returns the time of the tracker.
    fn wrote(&self, lease: &Lease) -> UnixMillis {
        let at = lease.tracker_time();
        self.of_session(lease, |known| known.written = known.written.max(at));
        at
    }

    async fn renew_if_due(&self, lease: &mut Lease) -> Result<(), SessionError> {
        if Instant::now() >= lease.renew_at { self.renew(lease).await } else { Ok(()) }
    }

    /// Reads or changes the state of the catalogue, unless the session has ended.
    fn of_session<T>(&self, lease: &Lease, read: impl FnOnce(&mut CatalogueState) -> T) -> Option<T> {
        let mut state = self.shared.state.lock();
        let known = state.catalogues.get_mut(&lease.catalogue)?;
        (known.session() == Some(lease.session)).then(|| read(known))
    }

    /// Ends the session if the reply is `unauthorized`.
    fn check<T>(&self, lease: &Lease, result: Result<T, TrackerError>) -> Result<T, SessionError> {
        if let Err(error) = &result
            && error.is_unauthorized()
        {
            self.shared.end_session(lease.catalogue, lease.session, error);
        }
        Ok(result?)
    }

    async fn announce_all(&self, lease: &mut Lease) -> Result<(), SessionError> {
        let mut after = None;
        loop {
            let page = self.shared.source.offers(after, MAX_OFFERS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            self.announce(lease, &page).await?;
            self.renew_if_due(lease).await?;
        }
        lease.schedule_announce_all();
        if let Some(known) = self.shared.state.lock().catalogues.get_mut(&lease.catalogue)
            && known.session() == Some(lease.session)
        {
            known.announced = true;
        }
        Ok(())
    }

    async fn announce(&self, lease: &mut Lease, offers: &[Offer]) -> Result<(), SessionError> {
        let mut attempts = 1;
        let unknown = loop {
            let announced = self.client.announce(lease.session, offers).await;
            match announced.as_ref().err().and_then(TrackerError::busy_delay) {
                // Otherwise the next attempt would announce all offers again, from the first one.
                Some(delay) if attempts < BUSY_ATTEMPTS => {
                    attempts += 1;
                    sleep(delay.clamp(MIN_BACKOFF, MAX_BACKOFF).min(lease.interval)).await;
                    self.renew_if_due(lease).await?;
                }
                _ => break self.check(lease, announced)?,
            }
        };
        self.wrote(lease);
        let mut remaining: HashSet<_> = unknown.iter().copied().collect();
        if !unknown.is_empty() {
            // The files expired, or the database was lost. Their publisher publishes them again.
            for publication in self.shared.source.publications_of(&unknown).await? {
                self.publish(lease, &publication).await?;
                remaining.remove(&publication.id);
                self.renew_if_due(lease).await?;
            }
        }
        if let Some(known) = self.shared.state.lock().catalogues.get_mut(&lease.catalogue) {
            known.announced(offers, &remaining);
        }
        Ok(())
    }

    /// Announces again the files that the catalogue did not contain, with a backoff.
    async fn announce_unknown(&self, lease: &mut Lease) -> Result<(), SessionError> {
        let unknown = self.shared.state.lock().catalogues.get(&lease.catalogue).map(|known| known.unknown());
        for offers in unknown.unwrap_or_default().chunks(MAX_OFFERS) {
            self.announce(lease, offers).await?;
            self.renew_if_due(lease).await?;
        }
        lease.schedule_retry();
        Ok(())
    }

    /// Publishes a file. A refused publication stays in the outbox and is repeated later, without blocking the rest. Fails only
    /// if the tracker or its database is unreachable or the session ended. Returns whether the catalogue refused it for another
    /// reason than a temporary one, such as `busy`.
    async fn publish(&self, lease: &Lease, publication: &Publication) -> Result<bool, SessionError> {
        let catalogue = lease.catalogue;
        let again = self.shared.source.acknowledged_version(catalogue, publication);
        let result = match self.client.publish_or_repeat(lease.session, publication, again).await {
            Ok((version, new)) => Ok(Acknowledgement { catalogue, version, new }),
            Err(error)
                if !error.is_unauthorized()
                    && error.code().is_some_and(|code| code != ErrorCode::Storage) =>
            {
                let refused = (publication.id, publication.name.clone());
                // It is repeated for as long as the file is published.
                if self.of_session(lease, |known| known.refused.contains(&refused)) != Some(true) {
                    tracing::warn!(name = %publication.name, %error, "publication refused");
                }
                Err(error)
            }
            Err(error) => return self.check(lease, Err(error)),
        };
        let marked = match &result {
            Ok(acknowledged) => {
                let at = self.wrote(lease);
                self.shared.source.mark_published(publication, *acknowledged, at).await
            }
            Err(_) => Ok(()),
        };
        let is_refused = result.as_ref().is_err_and(|error| !error.is_retryable_elsewhere());
        self.shared.update(|state| state.report(publication, &(catalogue, result)));
        marked?;
        Ok(is_refused)
    }

    async fn send_outbox(&self, lease: &mut Lease) -> Result<(), SessionError> {
        let outbox = self.shared.state.lock().outbox;
        let mut after: Option<Publication> = None;
        let mut refused = HashSet::new();
        loop {
            let page =
                self.shared.source.pending_publications(lease.catalogue, after.as_ref(), OUTBOX_PAGE).await?;
            if page.is_empty() {
                lease.outbox = Some(outbox);
                let mut state = self.shared.state.lock();
                state.catalogues.entry(lease.catalogue).or_default().refused = Arc::new(refused);
                return Ok(());
            }
            for publication in &page {
                if self.publish(lease, publication).await? {
                    refused.insert((publication.id, publication.name.clone()));
                }
                self.renew_if_due(lease).await?;
            }
            after = page.into_iter().last();
        }
    }

    async fn send_changes(&self, lease: &mut Lease) -> Result<(), SessionError> {
        loop {
            let changes = {
                let state = self.shared.state.lock();
                let known = state.catalogues.get(&lease.catalogue);
                let known = known.filter(|known| known.session() == Some(lease.session));
                known.map(|known| known.some_changes(MAX_OFFERS)).unwrap_or_default()
            };
            if changes.is_empty() {
                return Ok(());
            }
            let offers: Vec<Offer> = changes.iter().filter_map(|(_, offer)| *offer).collect();
            let withdrawn_ids: Vec<_> =
                changes.iter().filter(|(_, offer)| offer.is_none()).map(|(id, _)| *id).collect();
            if !withdrawn_ids.is_empty() {
                let reply = self.client.withdraw(lease.session, &withdrawn_ids).await;
                self.check(lease, reply)?;
                self.wrote(lease);
            }
            if !offers.is_empty() {
                self.announce(lease, &offers).await?;
            }
            if let Some(known) = self.shared.state.lock().catalogues.get_mut(&lease.catalogue) {
                known.sent(&changes);
            }
            self.renew_if_due(lease).await?;
        }
    }
}
