//! A cache of recent lookups in bounded memory, with replies that are encoded already.
//!
//! The cache listens to the writes of this tracker and updates or removes the affected entries before a write is acknowledged.
//! Only hits are cached, never the absence of a file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::seq::SliceRandom;

use super::claim_list::ClaimList;
use super::encoded_peers::EncodedPeers;
use crate::catalogue::changes::ChangeListener;
use crate::catalogue::layout::{Claim, FileEntry, PeerNumber, VersionRecord};
use crate::catalogue::peers::AlivePeers;
use crate::catalogue::providers::MAX_COUNTED;
use crate::catalogue::read_cache::ReadCache;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::lookup::ProvidersReply;
use enjambre_core::protocol::message::{MAX_PROVIDERS, Reply};
use enjambre_core::runtime;
use enjambre_core::{FileId, Name, UnixMillis};

/// The memory of an entry in addition to its name and claims.
pub(super) const ENTRY_BYTES: usize = 400;

/// What is found about a file.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The number of providers with the whole file that the requester can reach, up to 1,000.
    pub(super) count: u32,
    /// The reply to `find` by the id, see [`codec::encode_body`].
    pub found: Bytes,
}

/// The replies about a file.
#[derive(Debug)]
pub struct Answers {
    /// For requesters on this host.
    local: Answer,
    /// For all other requesters.
    remote: Answer,
    /// The time until which they are valid without further events.
    until: UnixMillis,
    basis: Basis,
}

impl Answers {
    /// Returns the answer for a requester on this or another host.
    pub const fn to(&self, is_local: bool) -> &Answer {
        if is_local { &self.local } else { &self.remote }
    }
}

/// The state from which answers are made. Answers are void once it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Basis {
    changes: u64,
    liveness: u64,
}

/// A file and the claims to it.
#[derive(Debug)]
pub(super) struct CachedFile {
    pub(super) id: FileId,
    pub(super) entry: FileEntry,
    state: Mutex<FileState>,
}

#[derive(Debug)]
struct FileState {
    claims: ClaimList,
    answers: Option<Arc<Answers>>,
}

impl CachedFile {
    pub(super) fn new(id: FileId, entry: FileEntry, claims: &[(PeerNumber, Claim)]) -> Self {
        let claims = ClaimList::new(entry.size, claims);
        Self { id, entry, state: Mutex::new(FileState { claims, answers: None }) }
    }

    /// The memory of the entry, which does not change.
    pub(super) fn weight(&self) -> usize {
        ENTRY_BYTES + 2 * self.entry.name.as_str().len() + self.state.lock().claims.bytes()
    }

    /// The number of claims.
    pub(super) fn claims(&self) -> usize {
        self.state.lock().claims.len()
    }

    /// Sets or removes a claim. Returns `false` if it exceeds the memory for which the file is counted.
    fn set_claim(&self, peer: PeerNumber, claim: Option<Claim>) -> bool {
        let state = &mut *self.state.lock();
        let before = state.claims.changes();
        let fits = state.claims.set(peer, claim);
        if state.claims.changes() != before {
            state.answers = None;
        }
        fits
    }
}

/// The newest version of a name.
#[derive(Debug)]
pub(super) struct CachedName {
    pub(super) version: u64,
    pub(super) record: VersionRecord,
}

/// Claims with the number of their peer.
type Claims = Vec<(PeerNumber, Claim)>;

/// The cache.
#[derive(Debug)]
pub(super) struct LookupCache {
    pub(super) names: ReadCache<Box<str>, Arc<CachedName>>,
    pub(super) files: ReadCache<FileId, Arc<CachedFile>>,
    peers: EncodedPeers,
    /// Counts the events after which a peer is alive or ceases to be alive for another reason than the passing of time.
    liveness: AtomicU64,
}

impl LookupCache {
    /// A cache of at most `bytes` bytes, whose entries are valid for `ttl`.
    pub(super) fn new(bytes: usize, ttl: Duration) -> Self {
        Self {
            names: ReadCache::new(bytes / 7, ENTRY_BYTES, ttl),
            files: ReadCache::new(bytes / 7 * 6, 2 * ENTRY_BYTES, ttl),
            peers: EncodedPeers::default(),
            liveness: AtomicU64::new(0),
        }
    }

    /// Returns the answers about the file, if they are valid.
    pub(super) fn answers(&self, file: &CachedFile, now: UnixMillis) -> Option<Arc<Answers>> {
        let state = file.state.lock();
        self.valid(&state, now).cloned()
    }

    fn valid<'a>(&self, state: &'a FileState, now: UnixMillis) -> Option<&'a Arc<Answers>> {
        let answers = state.answers.as_ref()?;
        let same = answers.basis.liveness == self.liveness.load(Ordering::SeqCst);
        (same && now < answers.until).then_some(answers)
    }

    /// Returns the answers about the file, if they are valid, and the claims of the peers that are reachable according to them.
    pub(super) fn reachable_claims(
        &self,
        file: &CachedFile,
        now: UnixMillis,
    ) -> Option<(Claims, Arc<Answers>)> {
        let state = file.state.lock();
        let answers = Arc::clone(self.valid(&state, now)?);
        let claims = state.claims.reachable(true).into_iter();
        Some((claims.map(|packed| (packed.peer(), state.claims.get(packed))).collect(), answers))
    }

    /// Returns the claims to the file, and the basis for [`LookupCache::set_answers`].
    pub(super) fn claims(&self, file: &CachedFile) -> (Claims, Basis) {
        let liveness = self.liveness.load(Ordering::SeqCst);
        let state = file.state.lock();
        (state.claims.iter().collect(), Basis { changes: state.claims.changes(), liveness })
    }

    /// Makes answers from the peers that are alive among those with these claims. Stores them unless the basis changed, and
    /// returns them.
    pub(super) fn set_answers(
        &self,
        file: &CachedFile,
        basis: Basis,
        claims: &[(PeerNumber, Claim)],
        alive: &AlivePeers,
    ) -> Arc<Answers> {
        let answer = |is_local| {
            let count = alive.complete_providers(claims, is_local).min(MAX_COUNTED);
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let file = file.entry.clone().with_id(file.id, count);
            Answer { count, found: codec::encode_body(&Reply::Find { file }) }
        };
        let local = answer(true);
        let can_share = alive.complete_providers(claims, false) == alive.complete_providers(claims, true);
        let remote = if can_share { local.clone() } else { answer(false) };
        let answers = Arc::new(Answers { local, remote, until: alive.until, basis });
        let state = &mut *file.state.lock();
        if state.claims.changes() == basis.changes {
            let leases = alive.leases.iter().map(Option::as_deref);
            let reachable = self.peers.insert(state.claims.iter().map(|(peer, _)| peer).zip(leases));
            state.claims.set_reachable(reachable.into_iter());
            state.answers = Some(Arc::clone(&answers));
        }
        answers
    }

    /// Encodes a reply with a random choice of providers, if the answers about the file are valid.
    pub(super) fn choose_providers(
        &self,
        file: &CachedFile,
        is_local: bool,
        now: UnixMillis,
    ) -> Option<ProvidersReply> {
        let chosen: Vec<_> = {
            let state = file.state.lock();
            self.valid(&state, now)?;
            let mut reachable = state.claims.reachable(is_local);
            let (chosen, _) = reachable.partial_shuffle(&mut runtime::rng(), MAX_PROVIDERS);
            chosen.iter().map(|packed| (packed.peer(), state.claims.get(*packed))).collect()
        };
        self.peers.reply(is_local, chosen.into_iter())
    }

    /// The memory of all entries in bytes.
    #[cfg(test)]
    pub(super) fn weight(&self) -> u64 {
        self.names.weight() + self.files.weight()
    }
}

impl ChangeListener for LookupCache {
    fn name_changed(&self, name: &Name) {
        self.names.remove(name.as_str());
    }

    fn file_changed(&self, id: &FileId) {
        self.files.remove(id);
    }

    fn claim_changed(&self, peer: PeerNumber, id: &FileId, claim: Option<Claim>) {
        self.files.touch(id);
        let Some(file) = self.files.get_any(id) else { return };
        if !file.set_claim(peer, claim) {
            // The next lookup reads it again, with a larger capacity.
            self.files.remove(id);
        }
    }

    fn liveness_changed(&self) {
        self.liveness.fetch_add(1, Ordering::SeqCst);
    }
}
