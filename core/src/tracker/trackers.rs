//! Asks all trackers that are configured.
//!
//! Trackers with the same catalogue id work on one database, so one of them is asked, and another one if it fails.
//! Different catalogues are all asked and their answers put together. Once one has answered the others have two
//! seconds more, so that a tracker that swallows everything holds nobody up.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout, timeout_at};

use super::client::TrackerClient;
use super::error::{TrackerError, Unreached};
use crate::model::endpoint::Endpoint;
use crate::model::id::{FileId, PeerId};
use crate::model::record::{FileRecord, Provider};
use crate::protocol::message::{CatalogueId, MAX_ENDPOINTS, TrackerStatus};
use crate::transport::dialer::Dialer;

/// How long the others are waited for once one has answered.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// How long all together may take.
const ALL: Duration = Duration::from_secs(30);

/// The trackers of one catalogue, in the order of the configuration.
#[derive(Debug, Clone)]
pub struct Group {
    /// The catalogue.
    pub catalogue: CatalogueId,
    /// Its trackers; at least one.
    pub clients: Vec<Arc<TrackerClient>>,
}

impl Group {
    /// Asks one tracker, and the next one where it fails in a way that another one may not, or is silent for two
    /// seconds. For requests that only ask.
    pub(super) async fn ask<T, F>(&self, request: impl Fn(Arc<TrackerClient>) -> F) -> Result<T, TrackerError>
    where
        F: Future<Output = Result<T, TrackerError>>,
    {
        // Those that were silent a moment ago come last.
        let mut order: Vec<&Arc<TrackerClient>> = self.clients.iter().collect();
        order.sort_by_key(|client| client.is_silent());
        let mut next = order.into_iter();
        let mut running = FuturesUnordered::new();
        let mut reasons = Vec::new();
        let mut refusal = None;
        loop {
            let started = next.next();
            if let Some(client) = started {
                let answer = request(Arc::clone(client));
                running.push(answer);
            }
            // The last one is waited for until its own deadline.
            let hedge = if next.len() > 0 { STRAGGLERS } else { ALL };
            match timeout(hedge, running.next()).await {
                Ok(Some(Err(TrackerError::Unreachable { reasons: new }))) => reasons.extend(new),
                Ok(Some(Err(error))) if error.is_for_another() => refusal = Some(error),
                Ok(Some(result)) => return result,
                Ok(None) => return Err(refusal.unwrap_or(TrackerError::Unreachable { reasons })),
                // It is not the first to be asked the next time.
                Err(_) => started.into_iter().for_each(|client| client.set_silent()),
            }
        }
    }
}

/// All trackers that are configured.
#[derive(Debug)]
pub struct Trackers {
    clients: Vec<Arc<TrackerClient>>,
}

impl Trackers {
    /// The trackers at these endpoints. Nothing is dialled yet.
    pub fn new(dialer: &Arc<Dialer>, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut clients: Vec<Arc<TrackerClient>> = Vec::new();
        for endpoint in endpoints {
            if clients.iter().all(|client| *client.endpoint() != endpoint) {
                clients.push(Arc::new(TrackerClient::new(Arc::clone(dialer), endpoint)));
            }
        }
        Self { clients }
    }

    /// Each tracker.
    pub fn clients(&self) -> &[Arc<TrackerClient>] {
        &self.clients
    }

    /// The trackers by their catalogue, in the order of the configuration, and those that could not be asked.
    /// Without `patience` those that were silent a moment ago are not waited for where others answer.
    pub(super) async fn groups(&self, patience: bool) -> (Vec<Group>, Vec<Unreached>) {
        let asked = self.clients.iter().map(|client| async { client.catalogue().await });
        let silent = |at: usize| !patience && self.clients[at].is_silent();
        let learned = gather(asked, silent).await;
        let (mut groups, mut reasons) = (Vec::<Group>::new(), Vec::new());
        for (client, catalogue) in self.clients.iter().zip(learned) {
            match catalogue {
                Some(Ok(catalogue)) => match groups.iter_mut().find(|group| group.catalogue == catalogue) {
                    Some(group) => group.clients.push(Arc::clone(client)),
                    None => groups.push(Group { catalogue, clients: vec![Arc::clone(client)] }),
                },
                Some(Err(TrackerError::Unreachable { reasons: new })) => reasons.extend(new),
                Some(Err(error)) => {
                    let endpoint = client.endpoint().clone();
                    reasons.push(Unreached { endpoint, reason: error.to_string() });
                }
                None => {
                    if !client.is_silent() {
                        client.set_silent();
                    }
                    let endpoint = client.endpoint().clone();
                    let reason = format!("{endpoint} did not answer in time");
                    reasons.push(Unreached { endpoint, reason });
                }
            }
        }
        (groups, reasons)
    }

    /// Asks every catalogue. The answers come in the order of the configuration; all that went wrong is in the
    /// error if nobody answered.
    async fn ask_all<T, F>(
        &self,
        patience: bool,
        request: impl Fn(Arc<TrackerClient>) -> F,
    ) -> Result<Vec<Result<T, TrackerError>>, TrackerError>
    where
        F: Future<Output = Result<T, TrackerError>>,
    {
        let (groups, mut reasons) = self.groups(patience).await;
        let answers = gather(groups.iter().map(|group| group.ask(&request)), |_| false).await;
        let mut given = Vec::new();
        for answer in answers.into_iter().flatten() {
            match answer {
                Err(TrackerError::Unreachable { reasons: new }) => reasons.extend(new),
                answer => given.push(answer),
            }
        }
        if given.is_empty() { Err(TrackerError::Unreachable { reasons }) } else { Ok(given) }
    }

    /// The file of a name (its newest version), an id, or a prefix of 8 or more digits of an id. All catalogues are
    /// asked; of several with the same name the first catalogue in the order of the configuration wins.
    pub async fn find(&self, query: &str) -> Result<FileRecord, TrackerError> {
        let answers = self.ask_all(true, |client| async move { client.find(query).await }).await?;
        let is_prefix = (8..64).contains(&query.len()) && query.bytes().all(|b| b.is_ascii_hexdigit());
        let mut found = Vec::<FileRecord>::new();
        let (mut failed, mut not_found) = (None, None);
        for answer in answers {
            match answer {
                Ok(file) => found.push(file),
                Err(TrackerError::Ambiguous { matches, .. }) => found.extend(matches),
                Err(error @ TrackerError::NotFound { .. }) => not_found = Some(error),
                Err(error) => failed = Some(error),
            }
        }
        if is_prefix {
            found.sort_by_key(|file| file.id);
            found.dedup_by_key(|file| file.id);
            if found.len() > 1 {
                let message = format!("the ids of {} or more files begin with {query}", found.len());
                return Err(TrackerError::Ambiguous { message, matches: found });
            }
        }
        let nothing = || TrackerError::Unreachable { reasons: Vec::new() };
        found.into_iter().next().ok_or_else(|| not_found.or(failed).unwrap_or_else(nothing))
    }

    /// The peers that offer the file now, as all catalogues know them. [`TrackerError::NotFound`] where no catalogue
    /// has the file.
    pub async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, TrackerError> {
        let answers = self.ask_all(false, |client| async move { client.providers(id).await }).await?;
        let mut merged = Vec::<Provider>::new();
        let mut places = HashMap::<PeerId, usize>::new();
        let (mut answered, mut failed, mut not_found) = (false, None, None);
        for answer in answers {
            match answer {
                Ok(providers) => {
                    answered = true;
                    for provider in providers {
                        match places.get(&provider.peer).and_then(|at| merged.get_mut(*at)) {
                            Some(known) => merge_provider(known, provider),
                            None => {
                                places.insert(provider.peer, merged.len());
                                merged.push(provider);
                            }
                        }
                    }
                }
                Err(error @ TrackerError::NotFound { .. }) => not_found = Some(error),
                Err(error) => failed = Some(error),
            }
        }
        match not_found.or(failed) {
            Some(error) if !answered => Err(error),
            _ => Ok(merged),
        }
    }

    /// How each tracker does.
    pub async fn status(&self) -> Vec<(Endpoint, Result<TrackerStatus, TrackerError>)> {
        let answers = gather(self.clients.iter().map(|client| client.status()), |_| false).await;
        let late = |endpoint: &Endpoint| {
            let reason = format!("{endpoint} did not answer in time");
            TrackerError::Unreachable { reasons: vec![Unreached { endpoint: endpoint.clone(), reason }] }
        };
        self.clients
            .iter()
            .zip(answers)
            .map(|(client, answer)| {
                let endpoint = client.endpoint();
                (endpoint.clone(), answer.unwrap_or_else(|| Err(late(endpoint))))
            })
            .collect()
    }
}

fn merge_provider(known: &mut Provider, other: Provider) {
    for endpoint in other.endpoints {
        if !known.endpoints.contains(&endpoint) && known.endpoints.len() < MAX_ENDPOINTS {
            known.endpoints.push(endpoint);
        }
    }
    if other.complete && !known.complete {
        (known.complete, known.size) = (true, other.size);
    }
}

/// Runs all at once and gives each one's result, in their order; none for those that were not waited for. Those
/// that are `dispensable` are not waited for at all once one has succeeded and the others are done.
async fn gather<T, E, F>(
    futures: impl IntoIterator<Item = F>,
    dispensable: impl Fn(usize) -> bool,
) -> Vec<Option<Result<T, E>>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut running: FuturesUnordered<_> =
        futures.into_iter().enumerate().map(|(at, future)| async move { (at, future.await) }).collect();
    let mut results: Vec<_> = std::iter::repeat_with(|| None).take(running.len()).collect();
    let needed: Vec<_> = (0..results.len()).filter(|at| !dispensable(*at)).collect();
    let mut until = Instant::now() + ALL;
    let mut succeeded = false;
    while let Ok(Some((at, result))) = timeout_at(until, running.next()).await {
        if result.is_ok() {
            succeeded = true;
            until = until.min(Instant::now() + STRAGGLERS);
        }
        results[at] = Some(result);
        if succeeded && needed.iter().all(|at| results[*at].is_some()) {
            break;
        }
    }
    results
}
