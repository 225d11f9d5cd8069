//! One worker for each tracker. The workers of one catalogue agree on one of them to speak for the peer:
//!
//! ```text
//! Starting --learned the catalogue--> Standby --nobody speaks for it--> Connected
//!    ^                                                                     |
//!    '---- pause ---- Failed <--------- the tracker does not answer -------'
//! ```
//! A session belongs to the catalogue, so the worker that takes over goes on with it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Shared;
use super::backoff::Backoff;
use super::state::Phase;
use crate::machine;
use crate::model::record::{Offer, Publication};
use crate::protocol::error::ErrorCode;
use crate::protocol::message::{CatalogueId, MAX_OFFERS, SessionId};
use crate::storage::error::StorageError;
use crate::swarm::membership::Invalid;
use crate::tracker::client::{SwarmNews, TrackerClient};
use crate::tracker::error::{TrackerError, Unreached};

/// How long changes are collected before they are sent.
const COLLECT: Duration = Duration::from_millis(20);
/// The longest pause before files that the catalogue did not know are announced again.
const AGAIN: Duration = Duration::from_secs(600);
/// The longest time after which all is announced again: a database that lost its last seconds in a power cut may have
/// the session, and not what was announced in it. What it has costs it a look.
const EVERYTHING_AGAIN: Duration = Duration::from_secs(900);
/// A renewal may take so long however short the lease is.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// How many publications are read at once.
const PUBLICATIONS: usize = 100;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// The place among the workers.
    pub(super) at: usize,
    pub(super) client: Arc<TrackerClient>,
}

/// Why a worker does not go on.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    #[error("the library failed: {0}")]
    Library(#[from] StorageError),
    #[error("the tracker serves another catalogue now")]
    OtherCatalogue,
    #[error("what the tracker says of the swarm is not accepted: {0}; is swarm.authority the right one?")]
    Swarm(#[from] Invalid),
    #[error("the swarm is by invitation, but swarm.authority is not set; `enjambre join` sets it")]
    ByInvitation,
}

impl Stop {
    /// What went wrong with this one tracker.
    fn reason(&self) -> String {
        match self {
            Self::Tracker(TrackerError::Unreachable { reasons }) if !reasons.is_empty() => {
                let each: Vec<_> = reasons.iter().map(|reached| reached.reason.as_str()).collect();
                each.join("; ")
            }
            other => other.to_string(),
        }
    }
}

/// When the lease is to be renewed next.
struct Lease {
    session: SessionId,
    third: Duration,
    due: Instant,
    /// When what the catalogue did not know or refused is sent again, and the pause before that.
    again: Instant,
    pause: Duration,
    /// When everything is announced again.
    everything: Instant,
}

impl Worker {
    /// Works until it is dropped.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new();
        loop {
            let Err(stop) = self.attempt(&mut backoff).await;
            let error = stop.reason();
            tracing::info!(tracker = %self.client.endpoint(), error, "not connected; trying again");
            self.shared.update(|state| {
                let worker = &mut state.workers[self.at];
                worker.phase = Phase::Failed;
                worker.last_error = Some(error);
                for catalogue in state.catalogues.values_mut() {
                    if catalogue.active == Some(self.at) {
                        catalogue.active = None;
                    }
                }
            });
            sleep(backoff.pause()).await;
        }
    }

    async fn attempt(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Stop> {
        let catalogue = self.client.learn_catalogue().await?;
        loop {
            let mine = self.shared.update(|state| {
                let active = state.catalogues.entry(catalogue).or_default();
                let mine = *active.active.get_or_insert(self.at) == self.at;
                let worker = &mut state.workers[self.at];
                worker.catalogue = Some(catalogue);
                worker.phase = if mine { Phase::Starting } else { Phase::Standby };
                mine
            });
            if mine {
                break;
            }
            // Own changes wake nobody: whoever waits here looks at whether the place is free.
            let free = |state: &super::state::State| {
                state.catalogues.get(&catalogue).is_none_or(|catalogue| catalogue.active.is_none())
            };
            self.shared.wait(free).await;
        }
        self.speak(catalogue, backoff).await
    }

    async fn speak(
        &self,
        catalogue: CatalogueId,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Stop> {
        let mut seen = self.shared.changed.count();
        let mut lease = self.session(catalogue).await?;
        let mut outbox = None;
        loop {
            let (current, session, suspect) = {
                let mut state = self.shared.state.lock();
                let outbox = state.outbox;
                let known = state.catalogues.entry(catalogue).or_default();
                (outbox, known.session(), std::mem::take(&mut known.suspect))
            };
            if session != Some(lease.session) {
                // It ended, because there were too many changes or the tracker said so.
                lease = self.session(catalogue).await?;
                outbox = None;
            }
            if suspect {
                self.renew(catalogue, &mut lease).await?;
            }
            if outbox != Some(current) {
                self.send_outbox(catalogue, &mut lease).await?;
                outbox = Some(current);
            }
            self.send_changes(catalogue, &mut lease).await?;
            self.connected();
            *backoff = Backoff::new();
            tokio::select! {
                biased;
                () = sleep_until(lease.due) => {
                    self.renew(catalogue, &mut lease).await?;
                    if Instant::now() >= lease.everything {
                        self.announce_all(catalogue, &mut lease).await?;
                    }
                    if Instant::now() >= lease.again {
                        self.announce_unknown(catalogue, &mut lease).await?;
                        // What was refused is tried again, too.
                        outbox = None;
                    }
                }
                () = self.shared.changed.beyond(&mut seen) => sleep(COLLECT).await,
            }
        }
    }

    fn connected(&self) {
        let known = self.shared.state.lock().workers[self.at].phase == Phase::Connected;
        if !known {
            tracing::info!(tracker = %self.client.endpoint(), "connected");
            self.shared.update(|state| {
                let worker = &mut state.workers[self.at];
                worker.phase = Phase::Connected;
                worker.last_error = None;
            });
        }
    }

    /// A session that works, with everything announced: the one of the worker before, or a new one.
    async fn session(&self, catalogue: CatalogueId) -> Result<Lease, Stop> {
        let known = {
            let state = self.shared.state.lock();
            let known = state.catalogues.get(&catalogue);
            known.and_then(|known| known.welcome.clone().map(|welcome| (welcome, known.announced)))
        };
        if let Some((welcome, announced)) = known {
            let mut lease = Lease::new(welcome.session, welcome.lease_ms);
            match self.renew(catalogue, &mut lease).await {
                Ok(()) => {
                    // Whoever began it may have stopped in the middle.
                    if !announced {
                        self.announce_all(catalogue, &mut lease).await?;
                    }
                    return Ok(lease);
                }
                Err(Stop::Tracker(error)) if error.code() == Some(ErrorCode::Unauthorized) => {}
                Err(stop) => return Err(stop),
            }
        }
        let begun = Instant::now();
        let (actual, welcome) = self.client.hello(&self.shared.key, &self.shared.endpoints).await?;
        if actual != catalogue {
            return Err(Stop::OtherCatalogue);
        }
        let mut lease = Lease::new(welcome.session, welcome.lease_ms);
        lease.due = begun + lease.third;
        if let Some(members) = &self.shared.members {
            members.take(welcome.membership.as_ref(), None).await?;
            // The list of revocations comes with the first renewal.
            lease.due = begun;
        } else if welcome.membership.is_some() {
            // It would serve anybody, in a swarm that lets in members only.
            return Err(Stop::ByInvitation);
        }
        // From here on changes are remembered; what changed before is in what the library offers.
        self.shared.update(|state| {
            state.catalogues.entry(catalogue).or_default().begin_session(welcome);
        });
        self.announce_all(catalogue, &mut lease).await?;
        Ok(lease)
    }

    async fn renew(&self, catalogue: CatalogueId, lease: &mut Lease) -> Result<(), Stop> {
        while self.renew_once(catalogue, lease).await? {}
        Ok(())
    }

    /// Renews; true where the tracker has more to tell.
    async fn renew_once(&self, catalogue: CatalogueId, lease: &mut Lease) -> Result<bool, Stop> {
        let begun = Instant::now();
        // Silence must not use up the lease: another tracker may take the renewal, and in time even if the silent one did
        // not write down the one before.
        let limit = (lease.third / 2).max(SHORTEST_WAIT);
        let known = self.shared.members.as_ref().map(|members| members.known());
        let renewed = match known {
            Some(known) => timeout(limit, self.client.renew_membership(lease.session, known)).await,
            None => timeout(limit, self.client.renew(lease.session))
                .await
                .map(|renewed| renewed.map(|()| SwarmNews::default())),
        };
        let silent = |_| {
            let endpoint = self.client.endpoint().clone();
            let reason = format!("{endpoint} did not answer in time");
            Err(TrackerError::Unreachable { reasons: vec![Unreached { endpoint, reason }] })
        };
        let news = self.check(catalogue, lease.session, renewed.unwrap_or_else(silent))?;
        lease.due = begun + lease.third;
        let (Some(members), Some(known)) = (&self.shared.members, known) else { return Ok(false) };
        members.take(news.membership.as_ref(), news.revocations.as_ref()).await?;
        // Whatever a tracker says: each page has to be signed, and newer than the one before.
        Ok(news.more && members.known().revocations > known.revocations)
    }

    async fn renew_if_due(&self, catalogue: CatalogueId, lease: &mut Lease) -> Result<(), Stop> {
        if Instant::now() >= lease.due { self.renew(catalogue, lease).await } else { Ok(()) }
    }

    /// Ends the session where the tracker does not know it any more.
    fn check<T>(
        &self,
        catalogue: CatalogueId,
        session: SessionId,
        result: Result<T, TrackerError>,
    ) -> Result<T, Stop> {
        if let Err(error) = &result
            && error.code() == Some(ErrorCode::Unauthorized)
        {
            self.shared.end_session(catalogue, session);
        }
        Ok(result?)
    }

    async fn announce_all(&self, catalogue: CatalogueId, lease: &mut Lease) -> Result<(), Stop> {
        let mut after = None;
        loop {
            let page = self.shared.source.offers(after, MAX_OFFERS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            self.announce(catalogue, lease, &page).await?;
            self.renew_if_due(catalogue, lease).await?;
        }
        lease.everything = Lease::in_a_while();
        if let Some(known) = self.shared.state.lock().catalogues.get_mut(&catalogue)
            && known.session() == Some(lease.session)
        {
            known.announced = true;
        }
        Ok(())
    }

    async fn announce(
        &self,
        catalogue: CatalogueId,
        lease: &mut Lease,
        offers: &[Offer],
    ) -> Result<(), Stop> {
        let announced = self.client.announce(lease.session, offers).await;
        let unknown = self.check(catalogue, lease.session, announced)?;
        let mut left: HashSet<_> = unknown.iter().copied().collect();
        if !unknown.is_empty() {
            // The catalogue forgot them, or its database was lost: who published them does it again.
            for publication in self.shared.source.publications_of(&unknown).await? {
                self.publish(catalogue, lease.session, &publication).await?;
                left.remove(&publication.id);
                self.renew_if_due(catalogue, lease).await?;
            }
        }
        if let Some(known) = self.shared.state.lock().catalogues.get_mut(&catalogue) {
            known.announced(offers, &left);
        }
        Ok(())
    }

    /// Tries again with files that the catalogue did not know, less and less often.
    async fn announce_unknown(&self, catalogue: CatalogueId, lease: &mut Lease) -> Result<(), Stop> {
        let unknown = self.shared.state.lock().catalogues.get(&catalogue).map(|known| known.unknown());
        for offers in unknown.unwrap_or_default().chunks(MAX_OFFERS) {
            self.announce(catalogue, lease, offers).await?;
            self.renew_if_due(catalogue, lease).await?;
        }
        lease.pause = (lease.pause * 2).min(AGAIN);
        lease.again = Instant::now() + lease.pause;
        Ok(())
    }

    /// Publishes, or leaves it in the outbox where the tracker refuses: it is tried again later, and must not keep
    /// the rest from being sent. Where the tracker's database is away, nothing can be sent.
    async fn publish(
        &self,
        catalogue: CatalogueId,
        session: SessionId,
        publication: &Publication,
    ) -> Result<(), Stop> {
        match self.client.publish(session, publication).await {
            Ok(_) => Ok(self.shared.source.mark_published(catalogue, publication).await?),
            Err(TrackerError::Refused { error, .. })
                if !matches!(error.code, ErrorCode::Unauthorized | ErrorCode::Storage) =>
            {
                tracing::warn!(name = %publication.name, %error, "a publication was refused");
                Ok(())
            }
            Err(error) => self.check(catalogue, session, Err(error)),
        }
    }

    async fn send_outbox(&self, catalogue: CatalogueId, lease: &mut Lease) -> Result<(), Stop> {
        let mut after: Option<Publication> = None;
        loop {
            let page =
                self.shared.source.pending_publications(catalogue, after.as_ref(), PUBLICATIONS).await?;
            if page.is_empty() {
                return Ok(());
            }
            for publication in &page {
                self.publish(catalogue, lease.session, publication).await?;
                self.renew_if_due(catalogue, lease).await?;
            }
            after = page.into_iter().last();
        }
    }

    async fn send_changes(&self, catalogue: CatalogueId, lease: &mut Lease) -> Result<(), Stop> {
        loop {
            let changes = {
                let state = self.shared.state.lock();
                let known = state.catalogues.get(&catalogue);
                let known = known.filter(|known| known.session() == Some(lease.session));
                known.map(|known| known.some_changes(MAX_OFFERS)).unwrap_or_default()
            };
            if changes.is_empty() {
                return Ok(());
            }
            let offers: Vec<Offer> = changes.iter().filter_map(|(_, offer)| *offer).collect();
            let gone: Vec<_> =
                changes.iter().filter(|(_, offer)| offer.is_none()).map(|(id, _)| *id).collect();
            if !gone.is_empty() {
                let withdrawn = self.client.withdraw(lease.session, &gone).await;
                self.check(catalogue, lease.session, withdrawn)?;
            }
            if !offers.is_empty() {
                self.announce(catalogue, lease, &offers).await?;
            }
            if let Some(known) = self.shared.state.lock().catalogues.get_mut(&catalogue) {
                known.sent(&changes);
            }
            self.renew_if_due(catalogue, lease).await?;
        }
    }
}

impl Lease {
    fn new(session: SessionId, lease_ms: u64) -> Self {
        // A tracker can neither make a peer renew without pause nor make it forget to.
        let third =
            Duration::from_millis(lease_ms / 3).clamp(Duration::from_millis(50), Duration::from_secs(600));
        let due = Instant::now() + third;
        Self { session, third, due, again: due, pause: third, everything: Self::in_a_while() }
    }

    /// Not at the same time for all peers that began together.
    fn in_a_while() -> Instant {
        Instant::now() + EVERYTHING_AGAIN.mul_f64(machine::rng().random_range(0.5..1.0))
    }
}
