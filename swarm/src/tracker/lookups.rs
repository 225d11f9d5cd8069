//! Lookups in a catalogue through a cache.

use std::net::IpAddr;
use std::sync::Arc;

use rand::seq::SliceRandom;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::lookup_cache::{Answers, CachedFile, CachedName, ENTRY_BYTES, LookupCache};
use crate::catalogue::Catalogue;
use crate::catalogue::access::TURN_TIMEOUT;
use crate::catalogue::changes::ChangeListener;
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::{Claim, FileEntry, LeaseRecord, VersionRecord};
use crate::catalogue::list::ListPage;
use crate::catalogue::names::{Query, not_found};
use crate::catalogue::peers::is_local;
use crate::rate_limit::turns::{Turn, Turns};
use enjambre_core::protocol::lookup::{CLAIM_BYTES, EncodedPeer, MAX_PROVIDER_BYTES, ProvidersReply};
use enjambre_core::protocol::message::MAX_PROVIDERS;
use enjambre_core::runtime;
use enjambre_core::{FileId, FileRecord, Provider, StorageError, UnixMillis};

/// The number of claims for which answers are renewed without a task of their own, while other requests wait.
const MAX_RENEWED: usize = 512;

/// Lookups in a catalogue. The `cached_` methods answer from memory alone; the others read the database if necessary, and
/// cache the result.
#[derive(Debug)]
pub struct Lookups {
    catalogue: Arc<Catalogue>,
    cache: Arc<LookupCache>,
    /// The reads of the database, one at a time for a file: concurrent lookups of a file wait for the first one, which caches
    /// what they need.
    reads: Turns<FileId>,
}

impl Lookups {
    /// Lookups with a cache of at most `cache_bytes` bytes.
    pub fn new(catalogue: Arc<Catalogue>, cache_bytes: usize) -> Self {
        let cache = Arc::new(LookupCache::new(cache_bytes, catalogue.rules().cache_ttl));
        let listener: Arc<dyn ChangeListener> = cache.clone();
        catalogue.add_listener(&listener);
        Self { catalogue, cache, reads: Turns::new(Semaphore::MAX_PERMITS, 1) }
    }

    /// As [`Catalogue::find`].
    pub async fn find(
        &self,
        query: &str,
        requester: Option<IpAddr>,
        now: UnixMillis,
    ) -> Result<FileRecord, CatalogueError> {
        let wait = Instant::now() + TURN_TIMEOUT;
        let name = match Query::parse(query)? {
            Query::Id(id) => {
                return self.file_until(wait, &id, requester, now).await?.ok_or_else(|| not_found(query));
            }
            // Prefixes are typed by people and rare, and may match many files.
            Query::Prefix(_) => {
                let found = self.catalogue.in_turn(requester, self.catalogue.find(query, now)).await?;
                // With the count for this requester.
                return self
                    .file_until(wait, &found.id, requester, now)
                    .await?
                    .ok_or_else(|| not_found(query));
            }
            Query::Name(name) => name,
        };
        let found = match self.cache.names.get(query, now) {
            Some(found) => found,
            None => {
                let stamp = self.cache.names.stamp(query);
                let newest = self.catalogue.newest_version(&name).await?;
                let (version, record, _) = newest.ok_or_else(|| not_found(query))?;
                let found = Arc::new(CachedName { version, record });
                let weight = ENTRY_BYTES + query.len();
                self.cache.names.insert(query.into(), Arc::clone(&found), weight, now, stamp);
                found
            }
        };
        let CachedName { version, record } = &*found;
        let providers = match self.load(wait, &record.id, now).await? {
            Some(file) => self.count_providers(wait, &file, requester, now).await?,
            None => 0,
        };
        Ok(record.clone().with_name(name, *version, providers))
    }

    /// Returns the answers to a query by name or id, or `None` if the database has to be read, or if the reply differs from
    /// [`Answer::found`](super::lookup_cache::Answer::found).
    pub fn cached_find(&self, query: &str, now: UnixMillis) -> Option<Arc<Answers>> {
        if query.len() == 64
            && let Ok(id) = query.parse()
        {
            return self.cached_answers(&id, now);
        }
        let name = self.cache.names.get(query, now)?;
        let file = self.cache.files.get(&name.record.id, now)?;
        let VersionRecord { size, kind, at, by, no, .. } = name.record;
        let FileEntry { name: of_file, version, .. } = &file.entry;
        let latest = (size, kind, at, by, no);
        let entry = &file.entry;
        let same = *version == name.version
            && of_file.as_str() == query
            && latest == (entry.size, entry.kind, entry.at, entry.by, entry.no);
        if same { self.answers(&file, now) } else { None }
    }

    /// As [`Catalogue::file`].
    pub async fn file(
        &self,
        id: &FileId,
        requester: Option<IpAddr>,
        now: UnixMillis,
    ) -> Result<Option<FileRecord>, CatalogueError> {
        self.file_until(Instant::now() + TURN_TIMEOUT, id, requester, now).await
    }

    async fn file_until(
        &self,
        wait: Instant,
        id: &FileId,
        requester: Option<IpAddr>,
        now: UnixMillis,
    ) -> Result<Option<FileRecord>, CatalogueError> {
        let Some(file) = self.load(wait, id, now).await? else { return Ok(None) };
        let providers = self.count_providers(wait, &file, requester, now).await?;
        Ok(Some(file.entry.clone().with_id(*id, providers)))
    }

    /// As [`Catalogue::list`].
    pub async fn list(
        &self,
        pattern: &str,
        cursor: Option<&[u8]>,
        limit: usize,
        requester: Option<IpAddr>,
        now: UnixMillis,
    ) -> Result<ListPage, CatalogueError> {
        let known_count = |id: &FileId| Some(self.cached_answers(id, now)?.to(is_local(requester)).count);
        self.catalogue.list(pattern, cursor, limit, requester, now, known_count).await
    }

    /// Returns a random choice of providers, as many as fit into a reply. A requester on another host gets no loopback
    /// endpoints.
    /// `None` if the catalogue does not have the file.
    pub async fn providers(
        &self,
        id: &FileId,
        is_local: bool,
        now: UnixMillis,
    ) -> Result<Option<Vec<Provider>>, CatalogueError> {
        let wait = Instant::now() + TURN_TIMEOUT;
        let Some(file) = self.load(wait, id, now).await? else { return Ok(None) };
        let (mut alive, _) = self.alive_claims(wait, &file, now).await?;
        alive.retain(|(_, lease)| lease.is_reachable(is_local));
        let (chosen, _) = alive.partial_shuffle(&mut runtime::rng(), MAX_PROVIDERS);
        let mut free = MAX_PROVIDER_BYTES;
        let fits = |(claim, lease): &(Claim, Arc<LeaseRecord>)| {
            let encoded = EncodedPeer::new(&lease.id, &lease.endpoints);
            free = free.checked_sub(encoded.visible_to(is_local)?.len() + CLAIM_BYTES)?;
            let mut endpoints = lease.endpoints.clone();
            endpoints.retain(|endpoint| is_local || !endpoint.is_loopback());
            let Claim { size, complete } = *claim;
            Some(Provider { peer: lease.id, endpoints, size, complete })
        };
        Ok(Some(chosen.iter().map_while(fits).collect()))
    }

    /// As [`Lookups::providers`], encoded, or `None` if the database has to be read.
    pub fn cached_providers(&self, id: &FileId, is_local: bool, now: UnixMillis) -> Option<ProvidersReply> {
        let file = self.cache.files.get(id, now)?;
        self.cache.choose_providers(&file, is_local, now).or_else(|| {
            self.renew_answers(&file, now)?;
            self.cache.choose_providers(&file, is_local, now)
        })
    }

    /// Returns the answers about a cached file.
    pub(super) fn cached_answers(&self, id: &FileId, now: UnixMillis) -> Option<Arc<Answers>> {
        self.answers(&*self.cache.files.get(id, now)?, now)
    }

    fn answers(&self, file: &CachedFile, now: UnixMillis) -> Option<Arc<Answers>> {
        self.cache.answers(file, now).or_else(|| self.renew_answers(file, now))
    }

    /// Renews void answers, if all necessary leases are cached and the claims are not too many.
    fn renew_answers(&self, file: &CachedFile, now: UnixMillis) -> Option<Arc<Answers>> {
        if file.claims() > MAX_RENEWED {
            return None;
        }
        let (claims, basis) = self.cache.claims(file);
        let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
        let alive = self.catalogue.cached_alive_peers(&peers, now)?;
        self.cache.set_answers(file, basis, &claims, &alive);
        self.cache.answers(file, now)
    }

    /// The memory of the cache in bytes.
    #[cfg(test)]
    pub(super) fn cache_weight(&self) -> u64 {
        self.cache.weight()
    }

    async fn count_providers(
        &self,
        wait: Instant,
        file: &CachedFile,
        requester: Option<IpAddr>,
        now: UnixMillis,
    ) -> Result<u32, CatalogueError> {
        let answers = match self.answers(file, now) {
            Some(answers) => answers,
            None => self.alive_claims(wait, file, now).await?.1,
        };
        Ok(answers.to(is_local(requester)).count)
    }

    /// Returns the file from the cache or the database. `None` if the catalogue does not have it.
    async fn load(
        &self,
        wait: Instant,
        id: &FileId,
        now: UnixMillis,
    ) -> Result<Option<Arc<CachedFile>>, StorageError> {
        if let Some(file) = self.cache.files.get(id, now) {
            return Ok(Some(file));
        }
        let _turn = self.turn(wait, id).await;
        if let Some(file) = self.cache.files.get(id, now) {
            return Ok(Some(file));
        }
        let stamp = self.cache.files.stamp(id);
        let Some((entry, claims)) = self.catalogue.file_claims(id, now).await? else { return Ok(None) };
        let file = Arc::new(CachedFile::new(*id, entry, &claims));
        self.cache.files.insert(*id, Arc::clone(&file), file.weight(), now, stamp);
        Ok(Some(file))
    }

    /// Waits for other reads of the file until this time, which is the same for all waits of a lookup, because the database may
    /// hang.
    async fn turn(&self, wait: Instant, id: &FileId) -> Option<Turn<'_, FileId>> {
        timeout_at(wait, self.reads.turn(Some(*id))).await.ok()
    }

    /// Returns the claims of providers, and the answers about the file, which it sets if necessary.
    async fn alive_claims(
        &self,
        wait: Instant,
        file: &CachedFile,
        now: UnixMillis,
    ) -> Result<(Vec<(Claim, Arc<LeaseRecord>)>, Arc<Answers>), StorageError> {
        let _turn = self.turn(wait, &file.id).await;
        let (claims, valid) = match self.cache.reachable_claims(file, now) {
            // From another lookup, for which this one waited. The leases of these peers are cached.
            Some((claims, answers)) => (claims, Ok(answers)),
            // The basis is taken first, so that any later change makes the answers void.
            None => {
                let (claims, basis) = self.cache.claims(file);
                (claims, Err(basis))
            }
        };
        let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
        let alive = self.catalogue.alive_peers(&peers, now).await?;
        let answers = valid.unwrap_or_else(|basis| self.cache.set_answers(file, basis, &claims, &alive));
        let alive = claims.into_iter().zip(alive.leases);
        Ok((alive.filter_map(|((_, claim), lease)| Some((claim, lease?))).collect(), answers))
    }
}
