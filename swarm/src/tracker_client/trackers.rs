//! Queries to all configured trackers.
//!
//! Trackers with the same catalogue id share a database, so one of them is queried, and another one if it fails. Different
//! catalogues are all queried and their replies merged. After the first reply the remaining trackers have two more seconds, so
//! that an unresponsive tracker does not delay the result.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout, timeout_at};

use super::client::TrackerClient;
use super::error::{TrackerError, UnreachableTracker};
use enjambre_core::model::id::is_id_or_prefix;
use enjambre_core::protocol::message::{MAX_ENDPOINTS, TrackerStatus};
use enjambre_core::{CatalogueId, Dialer, Endpoint, FileId, FileRecord, PeerId, Provider};

/// The time for further replies after the first one.
const STRAGGLER_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit of a query to all trackers.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The trackers of one catalogue, in the order of the configuration.
#[derive(Debug, Clone)]
pub struct CatalogueGroup {
    /// The catalogue.
    pub catalogue: CatalogueId,
    /// Its trackers; at least one.
    pub clients: Vec<Arc<TrackerClient>>,
}

impl CatalogueGroup {
    /// Sends a request to one tracker, and to the next one if it fails in a way that another one may not, or does not reply within
    /// two seconds. Only for idempotent requests.
    pub(super) async fn request<T, F>(
        &self,
        request: impl Fn(Arc<TrackerClient>) -> F,
    ) -> Result<T, TrackerError>
    where
        F: Future<Output = Result<T, TrackerError>>,
    {
        // Unresponsive trackers come last.
        let mut order: Vec<&Arc<TrackerClient>> = self.clients.iter().collect();
        order.sort_by_key(|client| client.is_unresponsive());
        let mut next = order.into_iter();
        let mut running = FuturesUnordered::new();
        let mut reasons = Vec::new();
        let mut refusal = None;
        loop {
            let started = next.next();
            if let Some(client) = started {
                running.push(request(Arc::clone(client)));
            }
            // The last tracker has its full time limit.
            let hedge = if next.len() > 0 { STRAGGLER_TIMEOUT } else { TOTAL_TIMEOUT };
            match timeout(hedge, running.next()).await {
                Ok(Some(Err(TrackerError::Unreachable { reasons: new }))) => reasons.extend(new),
                Ok(Some(Err(error))) if error.is_retryable_elsewhere() => refusal = Some(error),
                Ok(Some(result)) => return result,
                Ok(None) => return Err(refusal.unwrap_or(TrackerError::Unreachable { reasons })),
                // The next query prefers other trackers.
                Err(_) => started.into_iter().for_each(|client| client.set_unresponsive()),
            }
        }
    }
}

/// The configured trackers.
#[derive(Debug)]
pub struct Trackers {
    clients: Vec<Arc<TrackerClient>>,
}

impl Trackers {
    /// The trackers at these endpoints. They are connected on demand.
    pub fn new(dialer: &Arc<Dialer>, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut clients: Vec<Arc<TrackerClient>> = Vec::new();
        for endpoint in endpoints {
            if clients.iter().all(|client| *client.endpoint() != endpoint) {
                clients.push(Arc::new(TrackerClient::new(Arc::clone(dialer), endpoint)));
            }
        }
        Self { clients }
    }

    /// The clients, in the order of the configuration.
    pub fn clients(&self) -> &[Arc<TrackerClient>] {
        &self.clients
    }

    /// Returns the trackers by catalogue, in the order of the configuration, and the unreachable ones. Unless
    /// `wait_unresponsive`, unresponsive trackers are not waited for if others reply.
    pub(super) async fn groups(
        &self,
        wait_unresponsive: bool,
    ) -> (Vec<CatalogueGroup>, Vec<UnreachableTracker>) {
        let queries = self.clients.iter().map(|client| async { client.catalogue().await });
        let dispensable = |at: usize| !wait_unresponsive && self.clients[at].is_unresponsive();
        let catalogues = gather(queries, dispensable).await;
        let (mut groups, mut reasons) = (Vec::<CatalogueGroup>::new(), Vec::new());
        for (client, catalogue) in self.clients.iter().zip(catalogues) {
            match catalogue {
                Some(Ok(catalogue)) => match groups.iter_mut().find(|group| group.catalogue == catalogue) {
                    Some(group) => group.clients.push(Arc::clone(client)),
                    None => groups.push(CatalogueGroup { catalogue, clients: vec![Arc::clone(client)] }),
                },
                Some(Err(TrackerError::Unreachable { reasons: new })) => reasons.extend(new),
                Some(Err(error)) => {
                    let endpoint = client.endpoint().clone();
                    reasons.push(UnreachableTracker { endpoint, reason: error.to_string() });
                }
                None => {
                    if !client.is_unresponsive() {
                        client.set_unresponsive();
                    }
                    reasons.push(UnreachableTracker::timed_out(client.endpoint()));
                }
            }
        }
        (groups, reasons)
    }

    /// Queries every catalogue. Returns the replies in the order of the configuration, or all errors if no tracker replied.
    async fn query_all<T, F>(
        &self,
        wait_unresponsive: bool,
        request: impl Fn(Arc<TrackerClient>) -> F,
    ) -> Result<Vec<Result<T, TrackerError>>, TrackerError>
    where
        F: Future<Output = Result<T, TrackerError>>,
    {
        let (groups, mut reasons) = self.groups(wait_unresponsive).await;
        let replies = gather(groups.iter().map(|group| group.request(&request)), |_| false).await;
        let mut received = Vec::new();
        for reply in replies.into_iter().flatten() {
            match reply {
                Err(TrackerError::Unreachable { reasons: new }) => reasons.extend(new),
                reply => received.push(reply),
            }
        }
        if received.is_empty() { Err(TrackerError::Unreachable { reasons }) } else { Ok(received) }
    }

    /// Returns the newest version of a name, the file with an id, or the file whose id begins with 8 or more digits. Of several
    /// catalogues with the name the first one in the order of the configuration has precedence.
    pub async fn find(&self, query: &str) -> Result<FileRecord, TrackerError> {
        let replies = self.query_all(true, |client| async move { client.find(query).await }).await?;
        let is_prefix = is_id_or_prefix(query) && query.len() < 64;
        let mut found = Vec::<FileRecord>::new();
        let (mut failed, mut not_found) = (None, None);
        for reply in replies {
            match reply {
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

    /// Returns the current providers of a file in all catalogues.
    ///
    /// # Errors
    /// [`TrackerError::NotFound`] if no catalogue contains the file.
    pub async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, TrackerError> {
        let replies = self.query_all(false, |client| async move { client.providers(id).await }).await?;
        let mut merged = Vec::<Provider>::new();
        let mut places = HashMap::<PeerId, usize>::new();
        let (mut found, mut failed, mut not_found) = (false, None, None);
        for reply in replies {
            match reply {
                Ok(providers) => {
                    found = true;
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
            Some(error) if !found => Err(error),
            _ => Ok(merged),
        }
    }

    /// Returns the status of each tracker.
    pub async fn status(&self) -> Vec<(Endpoint, Result<TrackerStatus, TrackerError>)> {
        let replies = gather(self.clients.iter().map(|client| client.status()), |_| false).await;
        let status = |(client, reply): (&Arc<TrackerClient>, Option<_>)| {
            let endpoint = client.endpoint();
            let timed_out =
                || TrackerError::Unreachable { reasons: vec![UnreachableTracker::timed_out(endpoint)] };
            (endpoint.clone(), reply.unwrap_or_else(|| Err(timed_out())))
        };
        self.clients.iter().zip(replies).map(status).collect()
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

/// Runs futures concurrently and returns their results in order, `None` for those that timed out. Futures that are
/// `dispensable` are not waited for once one has succeeded and the rest are done.
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
    let mut until = Instant::now() + TOTAL_TIMEOUT;
    let mut succeeded = false;
    while let Ok(Some((at, result))) = timeout_at(until, running.next()).await {
        if result.is_ok() {
            succeeded = true;
            until = until.min(Instant::now() + STRAGGLER_TIMEOUT);
        }
        results[at] = Some(result);
        if succeeded && needed.iter().all(|at| results[*at].is_some()) {
            break;
        }
    }
    results
}
