//! What look-ups found lately, in a bounded number of bytes, so that they need no database.
//!
//! Nothing in here is believed for longer than a lease that was read ([`super::CatalogueRules::fresh`]): another tracker
//! may have written to the same database. What this tracker writes changes or removes what is remembered of it before
//! the write is acknowledged. A look-up that read the database while somebody wrote may hold what was there before, so
//! each write changes a stamp, and what was read under another stamp is not remembered. Only what was found is
//! remembered, never that something is missing.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rand::seq::SliceRandom;

use super::layout::{Claim, FileEntry, FileNumber, PeerNumber, VersionRecord};
use super::peers::Lease;
use crate::machine::{self, Keys};
use crate::model::id::FileId;
use crate::model::name::Name;
use crate::model::record::FileRecord;
use crate::protocol::codec;
use crate::protocol::message::{MAX_PROVIDERS, Reply};

/// How many stamps there are; what shares one is read again now and then without need.
const STAMPS: usize = 1024;
/// The bytes that an entry takes beside what is counted.
const ENTRY_BYTES: usize = 400;
/// The bytes of an entry of a file of which only the number is known.
const KNOWN_BYTES: usize = 128;

/// A file and the claims to have it.
#[derive(Debug)]
pub(super) struct RememberedFile {
    pub(super) id: FileId,
    pub(super) entry: FileEntry,
    read: u64,
    /// For how many claims, and sizes of claims, there is room in what it is counted for.
    room: usize,
    sizes_room: usize,
    state: Mutex<FileState>,
}

#[derive(Debug)]
struct FileState {
    /// In the order of the peers, and never more than there is room for.
    claims: Vec<Held>,
    /// What those claim who claim another size than the one in the entry, in the same order.
    sizes: Vec<(PeerNumber, u64)>,
    /// Counts the changes of the claims.
    changes: u64,
    answers: Option<Arc<Answers>>,
}

impl FileState {
    fn claim(&self, held: Held, entry: &FileEntry) -> Claim {
        let other = || {
            let at = self.sizes.binary_search_by_key(&held.peer(), |(peer, _)| *peer).ok()?;
            Some(self.sizes[at].1)
        };
        let size = if held.is(OTHER_SIZE) { other() } else { None };
        Claim { size: size.unwrap_or(entry.size), complete: held.is(COMPLETE) }
    }
}

/// A claim, as small as it can be: there are more of these than of anything else. The number of the peer, which has 48
/// bits, and behind it these flags.
#[derive(Debug, Clone, Copy)]
struct Held(u64);

/// The peer has the whole file.
const COMPLETE: u64 = 1;
/// It claims another size than the one in the entry.
const OTHER_SIZE: u64 = 2;
/// It is alive, and those who ask from this machine are told of it. Holds as long as the answers do.
const NEAR: u64 = 4;
/// The same for all others.
const FAR: u64 = 8;

impl Held {
    fn new(peer: PeerNumber, claim: Claim, entry: &FileEntry) -> Self {
        let complete = if claim.complete { COMPLETE } else { 0 };
        let other = if claim.size == entry.size { 0 } else { OTHER_SIZE };
        Self(peer.0 << 16 | complete | other)
    }

    const fn peer(&self) -> PeerNumber {
        PeerNumber(self.0 >> 16)
    }

    const fn is(&self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    fn set(&mut self, flag: u64, on: bool) {
        self.0 = if on { self.0 | flag } else { self.0 & !flag };
    }
}

impl RememberedFile {
    /// A file with claims in the order of the peers.
    pub(super) fn new(id: FileId, entry: FileEntry, claims: Vec<(PeerNumber, Claim)>, read: u64) -> Self {
        let room = claims.len() + claims.len() / 4 + 4;
        let mut held = Vec::with_capacity(room);
        held.extend(claims.iter().map(|(peer, claim)| Held::new(*peer, *claim, &entry)));
        let others = claims.iter().filter(|(_, claim)| claim.size != entry.size);
        let count = others.clone().count();
        let sizes_room = count + count / 4;
        let mut sizes = Vec::with_capacity(sizes_room);
        sizes.extend(others.map(|(peer, claim)| (*peer, claim.size)));
        let state = FileState { claims: held, sizes, changes: 0, answers: None };
        Self { id, entry, read, room, sizes_room, state: Mutex::new(state) }
    }

    /// How many claims there are.
    pub(super) fn claims(&self) -> usize {
        self.state.lock().claims.len()
    }

    pub(super) fn record(&self, providers: u32) -> FileRecord {
        let FileEntry { name, version, size, kind, at, by, .. } = self.entry.clone();
        FileRecord { id: self.id, name, version, size, kind, published_ms: at, publisher: by, providers }
    }

    /// Takes a claim in, or away; false where there is no room for it.
    fn set_claim(&self, peer: PeerNumber, claim: Option<Claim>) -> bool {
        let state = &mut *self.state.lock();
        let found = state.claims.binary_search_by_key(&peer, Held::peer);
        let was = found.ok().map(|at| state.claim(state.claims[at], &self.entry));
        if was == claim {
            return true;
        }
        let size = claim.map(|claim| claim.size).filter(|size| *size != self.entry.size);
        let had = state.sizes.binary_search_by_key(&peer, |(peer, _)| *peer);
        let grows = found.is_err() && state.claims.len() >= self.room;
        if grows || (size.is_some() && had.is_err() && state.sizes.len() >= self.sizes_room) {
            return false;
        }
        match (found, claim) {
            (Ok(at), Some(claim)) => state.claims[at] = Held::new(peer, claim, &self.entry),
            (Err(at), Some(claim)) => state.claims.insert(at, Held::new(peer, claim, &self.entry)),
            (Ok(at), None) => drop(state.claims.remove(at)),
            (Err(_), None) => {}
        }
        match (had, size) {
            (Ok(at), Some(size)) => state.sizes[at].1 = size,
            (Err(at), Some(size)) => state.sizes.insert(at, (peer, size)),
            (Ok(at), None) => drop(state.sizes.remove(at)),
            (Err(_), None) => {}
        }
        state.changes += 1;
        state.answers = None;
        true
    }
}

/// What is answered to those who look a file up.
#[derive(Debug)]
pub struct Answers {
    /// How many living peers have the file, up to 1,000.
    pub(super) count: u32,
    /// The reply to `find` by the id, see [`codec::encode_body`].
    pub found: Bytes,
    /// Until when this holds if nothing happens.
    until: u64,
    begun: Begun,
}

impl Answers {
    pub(super) fn new(file: &RememberedFile, count: u32, begun: Begun, until: u64) -> Self {
        let found = codec::encode_body(&Reply::Find { file: file.record(count) });
        Self { count, found, until, begun }
    }
}

/// What answers were made of: if that has changed, they are void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    changes: u64,
    peers: u64,
}

/// The newest version of a name.
#[derive(Debug)]
pub(super) struct RememberedName {
    pub(super) version: u64,
    pub(super) record: VersionRecord,
    read: u64,
}

/// A file that may be announced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) number: FileNumber,
    pub(super) read: u64,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<FileId, Arc<RememberedFile>> for ByBytes {
    fn weight(&self, _: &FileId, file: &Arc<RememberedFile>) -> u64 {
        let claims = file.room * size_of::<Held>() + file.sizes_room * size_of::<(PeerNumber, u64)>();
        (ENTRY_BYTES + 2 * file.entry.name.as_str().len() + claims) as u64
    }
}

impl Weighter<Box<str>, Arc<RememberedName>> for ByBytes {
    fn weight(&self, name: &Box<str>, _: &Arc<RememberedName>) -> u64 {
        (ENTRY_BYTES + name.len()) as u64
    }
}

impl Weighter<FileId, Known> for ByBytes {
    fn weight(&self, _: &FileId, _: &Known) -> u64 {
        KNOWN_BYTES as u64
    }
}

/// What is remembered.
#[derive(Debug)]
pub(super) struct Remembered {
    names: Cache<Box<str>, Arc<RememberedName>, ByBytes>,
    files: Cache<FileId, Arc<RememberedFile>, ByBytes>,
    known: Cache<FileId, Known, ByBytes>,
    hasher: Keys,
    stamps: Box<[AtomicU64]>,
    /// Counts how often a peer began or ceased to be alive in another way than by the passing of time.
    peers: AtomicU64,
    /// How old what is remembered may be, in milliseconds.
    fresh: u64,
}

/// Which stamp an entry has, and what it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    at: usize,
    was: u64,
}

impl Remembered {
    /// Takes up to this many bytes.
    pub(super) fn new(bytes: usize, fresh: u64) -> Self {
        let cache = |bytes: usize, each: usize| ((bytes / each).max(1), bytes as u64);
        let (names, names_bytes) = cache(bytes / 8, ENTRY_BYTES);
        let (files, files_bytes) = cache(bytes / 8 * 6, 2 * ENTRY_BYTES);
        let (known, known_bytes) = cache(bytes / 8, KNOWN_BYTES);
        Self {
            names: Cache::with_weighter(names, names_bytes, ByBytes),
            files: Cache::with_weighter(files, files_bytes, ByBytes),
            known: Cache::with_weighter(known, known_bytes, ByBytes),
            hasher: Keys::default(),
            stamps: (0..STAMPS).map(|_| AtomicU64::new(0)).collect(),
            peers: AtomicU64::new(0),
            fresh,
        }
    }

    fn is_fresh(&self, read: u64, now: u64) -> bool {
        now.checked_sub(read).is_some_and(|age| age < self.fresh)
    }

    fn stamp_of(&self, at: usize) -> Stamp {
        Stamp { at, was: self.stamps[at].load(Ordering::SeqCst) }
    }

    fn touch(&self, at: usize) {
        self.stamps[at].fetch_add(1, Ordering::SeqCst);
    }

    fn is_same(&self, stamp: Stamp) -> bool {
        self.stamps[stamp.at].load(Ordering::SeqCst) == stamp.was
    }

    fn place(id: &FileId) -> usize {
        let [first, second, ..] = id.as_bytes();
        usize::from(u16::from_be_bytes([*first, *second])) % STAMPS
    }

    fn place_of_name(&self, name: &str) -> usize {
        self.hasher.hash_one(name) as usize % STAMPS
    }

    /// To be taken before a file is read, and given back with what was found.
    pub(super) fn stamp(&self, id: &FileId) -> Stamp {
        self.stamp_of(Self::place(id))
    }

    /// As [`Remembered::stamp`], for a name.
    pub(super) fn name_stamp(&self, name: &str) -> Stamp {
        self.stamp_of(self.place_of_name(name))
    }

    /// The newest version of the name.
    pub(super) fn name(&self, name: &str, now: u64) -> Option<Arc<RememberedName>> {
        self.names.get(name).filter(|found| self.is_fresh(found.read, now))
    }

    pub(super) fn remember_name(
        &self,
        name: &Name,
        version: u64,
        record: VersionRecord,
        read: u64,
        stamp: Stamp,
    ) {
        self.names.insert(name.as_str().into(), Arc::new(RememberedName { version, record, read }));
        if !self.is_same(stamp) {
            self.names.remove(name.as_str());
        }
    }

    pub(super) fn file(&self, id: &FileId, now: u64) -> Option<Arc<RememberedFile>> {
        self.files.get(id).filter(|file| self.is_fresh(file.read, now))
    }

    pub(super) fn remember_file(&self, file: &Arc<RememberedFile>, stamp: Stamp) {
        self.files.insert(file.id, Arc::clone(file));
        if !self.is_same(stamp) {
            self.files.remove(&file.id);
        }
    }

    /// The number of a file that the catalogue has and is not about to forget.
    pub(super) fn known(&self, id: &FileId, now: u64) -> Option<FileNumber> {
        self.known.get(id).filter(|known| self.is_fresh(known.read, now)).map(|known| known.number)
    }

    pub(super) fn know(&self, id: FileId, known: Known, stamp: Stamp) {
        self.known.insert(id, known);
        if !self.is_same(stamp) {
            self.known.remove(&id);
        }
    }

    pub(super) fn forget_known(&self, id: &FileId) {
        self.touch(Self::place(id));
        self.known.remove(id);
    }

    /// Something else than its claims changed of the file.
    pub(super) fn forget_file(&self, id: &FileId) {
        self.forget_known(id);
        self.files.remove(id);
    }

    /// The name has another newest version, or none any more.
    pub(super) fn forget_name(&self, name: &str) {
        self.touch(self.place_of_name(name));
        self.names.remove(name);
    }

    /// The peer claims these files from now on, or no longer.
    pub(super) fn set_claims<'a>(
        &self,
        peer: PeerNumber,
        claims: impl Iterator<Item = (&'a FileId, Option<Claim>)>,
    ) {
        for (id, claim) in claims {
            self.touch(Self::place(id));
            let Some(file) = self.files.get(id) else { continue };
            if !file.set_claim(peer, claim) {
                // It takes more than it was counted for; it is read anew when it is wanted.
                self.files.remove(id);
            }
        }
    }

    /// A peer began or ceased to be alive.
    pub(super) fn peers_changed(&self) {
        self.peers.fetch_add(1, Ordering::SeqCst);
    }

    /// The answers, if they still hold.
    pub(super) fn answers(&self, file: &RememberedFile, now: u64) -> Option<Arc<Answers>> {
        let state = file.state.lock();
        let answers = state.answers.as_ref()?;
        let same = answers.begun.peers == self.peers.load(Ordering::SeqCst);
        (same && now < answers.until).then(|| Arc::clone(answers))
    }

    /// The claims that answers are to be made of.
    pub(super) fn begin_answers(&self, file: &RememberedFile) -> (Vec<(PeerNumber, Claim)>, Begun) {
        let peers = self.peers.load(Ordering::SeqCst);
        let state = file.state.lock();
        let claims = state.claims.iter().map(|held| (held.peer(), state.claim(*held, &file.entry))).collect();
        (claims, Begun { changes: state.changes, peers })
    }

    /// Keeps answers, if nothing has changed since they were begun. `living` are the leases of those who were alive then, in
    /// the order of the claims.
    pub(super) fn note_answers(
        &self,
        file: &RememberedFile,
        answers: Answers,
        living: &[Option<Arc<Lease>>],
    ) {
        let state = &mut *file.state.lock();
        if state.changes != answers.begun.changes {
            return;
        }
        for (held, lease) in state.claims.iter_mut().zip(living) {
            let told = |near| lease.as_ref().is_some_and(|lease| lease.encoded.told(near).is_some());
            held.set(NEAR, told(true));
            held.set(FAR, told(false));
        }
        state.answers = Some(Arc::new(answers));
    }

    /// Providers to be named, each as likely as any other and no more than fit into a reply, where the answers about the file
    /// still hold.
    pub(super) fn choose(
        &self,
        file: &RememberedFile,
        near: bool,
        now: u64,
    ) -> Option<Vec<(PeerNumber, Claim)>> {
        let state = file.state.lock();
        let answers = state.answers.as_ref()?;
        if answers.begun.peers != self.peers.load(Ordering::SeqCst) || now >= answers.until {
            return None;
        }
        let flag = if near { NEAR } else { FAR };
        let mut told: Vec<Held> = state.claims.iter().copied().filter(|held| held.is(flag)).collect();
        let (chosen, _) = told.partial_shuffle(&mut machine::rng(), MAX_PROVIDERS);
        Some(chosen.iter().map(|held| (held.peer(), state.claim(*held, &file.entry))).collect())
    }

    /// The bytes that are counted.
    #[cfg(test)]
    pub(super) fn weight(&self) -> u64 {
        self.names.weight() + self.files.weight() + self.known.weight()
    }
}
