//! Who claims to have which file: announce, withdraw, and the claims of peers that are alive.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::error::CatalogueError;
use super::layout::{
    self, CLEARED, Claim, FILES, FileEntry, FileNumber, OFFERS, PROVIDERS, PeerNumber, SESSIONS,
};
use super::peers::{Lease, Living, Session};
use super::remembered::{Answers, Begun, Known, RememberedFile};
use super::{ATTEMPTS, Catalogue};
use crate::machine;
use crate::model::id::{FileId, PeerId};
use crate::model::layout::PieceLayout;
use crate::model::record::{Offer, Provider};
use crate::protocol::lookup::{CLAIM_BYTES, MAX_PROVIDER_BYTES, ProvidersReply};
use crate::protocol::message::MAX_PROVIDERS;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, KeyRange, Space};

/// The largest count of providers; a larger one is reported as this.
const MAX_COUNTED: usize = 1000;
/// How many claims are looked at to name providers of one file.
const MAX_EXAMINED: usize = 4000;
/// How many entries are looked through for each claim that is announced before it is asked for them one by one.
const SCANNED_FOR_EACH: usize = 4;
/// Of how many claims it is found out who is alive while other requests wait.
const MAX_AT_ONCE: usize = 512;

/// A living peer's claim to have a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingClaim {
    /// Who claims it.
    pub peer: PeerId,
    /// What it claims.
    pub claim: Claim,
    /// Where it can be reached.
    pub lease: Arc<Lease>,
}

/// Entries of one space that are put into a batch together: there are many and they are small, so they share their memory.
#[derive(Debug, Default)]
struct Entries {
    bytes: Vec<u8>,
    /// Where the value of each of them begins and ends.
    values: Vec<(usize, usize)>,
}

impl Entries {
    fn add(&mut self, key: [u8; 12], write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.extend(key);
        let value = self.bytes.len();
        write(&mut self.bytes);
        self.values.push((value, self.bytes.len()));
    }

    fn put_into(self, space: Space, batch: &mut Batch) {
        let bytes = Bytes::from(self.bytes);
        let mut begin = 0;
        for (value, end) in self.values {
            batch.put(space, layout::key_of(bytes.slice(begin..value)), bytes.slice(value..end));
            begin = end;
        }
    }
}

/// Belongs into each batch that makes claims: nobody would clear away those of a peer that was removed meanwhile.
pub(super) fn require_session(batch: &mut Batch, by: &Session) {
    batch.require(SESSIONS, layout::session_key(by.id), layout::peer_number(by.number));
}

pub(super) fn put_claim(batch: &mut Batch, by: &Session, file: FileNumber, claim: Claim) {
    batch.put(PROVIDERS, layout::provider_key(file, by.number), claim.encode());
    batch.put(OFFERS, layout::offer_key(by.number, file), claim.encode_offer(by.began));
}

pub(super) fn delete_claim(batch: &mut Batch, peer: PeerNumber, file: FileNumber) {
    batch.delete(PROVIDERS, layout::provider_key(file, peer));
    batch.delete(OFFERS, layout::offer_key(peer, file));
}

/// Belongs into each batch that takes claims of a peer away: an announcement that found one of them unchanged, and
/// therefore does not write all of it, is tried again.
pub(super) fn note_cleared(batch: &mut Batch, peer: PeerNumber) {
    batch.put(CLEARED, layout::peer_key(peer), Bytes::copy_from_slice(&machine::rng().random::<[u8; 8]>()));
}

impl Catalogue {
    /// Writes down that the peer offers these files. Returns those that the catalogue does not have; they are
    /// left out. What is written down already is not written again.
    pub async fn announce(
        &self,
        by: &Session,
        offers: &[Offer],
        now: u64,
    ) -> Result<Vec<FileId>, CatalogueError> {
        for offer in offers {
            PieceLayout::new(offer.size)?;
        }
        for _ in 0..ATTEMPTS {
            let mut batch = Batch::new();
            let (unknown, mut announced) = self.resolve(offers, now, &mut batch).await?;
            // In the order of the keys, and of several claims to one file the last one.
            announced.sort_by_key(|(number, ..)| *number);
            announced.dedup_by(|later, earlier| {
                let same = later.0 == earlier.0;
                if same {
                    *earlier = *later;
                }
                same
            });
            self.add_claims(by, &announced, &mut batch).await?;
            require_session(&mut batch, by);
            if batch.writes.is_empty() || self.try_commit(batch, Durability::Buffered).await? {
                let claims = announced.iter().map(|(_, id, claim)| (id, Some(*claim)));
                self.remembered.set_claims(by.number, claims);
                return Ok(unknown);
            }
            self.still_valid(by).await?;
            for offer in offers {
                self.remembered.forget_known(&offer.id);
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// The numbers of the files that are offered, and the ids that the catalogue does not have. A file that was about
    /// to be forgotten is kept by the batch.
    async fn resolve(
        &self,
        offers: &[Offer],
        now: u64,
        batch: &mut Batch,
    ) -> Result<(Vec<FileId>, Vec<(FileNumber, FileId, Claim)>), CatalogueError> {
        let mut announced = Vec::with_capacity(offers.len());
        let mut missing = Vec::new();
        for offer in offers {
            match self.remembered.known(&offer.id, now) {
                Some(number) => announced.push((number, offer.id, claim_of(offer))),
                None => missing.push(offer),
            }
        }
        let keys: Vec<_> = missing.iter().map(|offer| layout::file_key(&offer.id)).collect();
        let stamps: Vec<_> = missing.iter().map(|offer| self.remembered.stamp(&offer.id)).collect();
        let entries = self.storage.get(FILES, &keys).await?;
        let mut unknown = Vec::new();
        for (((offer, key), stamp), raw) in missing.into_iter().zip(keys).zip(stamps).zip(entries) {
            let Some(raw) = raw else {
                unknown.push(offer.id);
                continue;
            };
            let entry: FileEntry = layout::decode(FILES, &raw)?;
            announced.push((entry.no, offer.id, claim_of(offer)));
            if entry.gone.is_some() {
                // Otherwise it could be forgotten in the same moment.
                batch.require(FILES, key.clone(), raw);
                batch.put(FILES, key, layout::encode(&FileEntry { gone: None, ..entry }));
            } else {
                self.remembered.know(offer.id, Known { number: entry.no, read: now }, stamp);
            }
        }
        Ok((unknown, announced))
    }

    /// Adds to the batch what is not written down yet of these claims, which are in the order of their files.
    async fn add_claims(
        &self,
        by: &Session,
        announced: &[(FileNumber, FileId, Claim)],
        batch: &mut Batch,
    ) -> Result<(), StorageError> {
        let peer = layout::peer_key(by.number);
        let cleared = self.read(CLEARED, &peer).await?;
        let files: Vec<_> = announced.iter().map(|(file, ..)| *file).collect();
        let stored = self.stored_offers(by.number, &files).await?;
        let mut spared = false;
        let (mut claims, mut offers) = (Entries::default(), Entries::default());
        for ((file, _, claim), raw) in announced.iter().zip(stored) {
            match raw {
                Some(raw) if claim.is_offer(by.began, &raw) => {
                    spared = true;
                    continue;
                }
                // Only the session is another. One that cannot be read is written anew.
                Some(raw) if Claim::decode_offer(&raw).is_ok_and(|(stored, _)| stored == *claim) => {
                    spared = true;
                }
                _ => claims.add(layout::provider_key_bytes(*file, by.number), |value| claim.write(value)),
            }
            offers.add(layout::offer_key_bytes(by.number, *file), |value| claim.write_offer(by.began, value));
        }
        claims.put_into(PROVIDERS, batch);
        offers.put_into(OFFERS, batch);
        if spared {
            match cleared {
                Some(cleared) => batch.require(CLEARED, peer, cleared),
                None => batch.require_absent(CLEARED, peer),
            };
        }
        Ok(())
    }

    /// What is written down of the peer's claims to these files, which are in order.
    async fn stored_offers(
        &self,
        peer: PeerNumber,
        files: &[FileNumber],
    ) -> Result<Vec<Option<Bytes>>, StorageError> {
        let (Some(first), Some(last)) = (files.first(), files.last()) else { return Ok(Vec::new()) };
        // Most often all that it offers between the first and the last of them is little more than these, or nothing.
        let bound = |file| Bound::Included(layout::offer_key(peer, file).into_bytes());
        let range = KeyRange { start: bound(*first), end: bound(*last) };
        let most = files.len() * SCANNED_FOR_EACH;
        let page = self.storage.scan(OFFERS, range, most).await?;
        let bytes: usize = page.iter().map(|(key, value)| key.as_bytes().len() + value.len()).sum();
        if page.len() >= most || bytes >= self.storage.limits().max_page_bytes {
            let keys: Vec<_> = files.iter().map(|file| layout::offer_key(peer, *file)).collect();
            return self.storage.get(OFFERS, &keys).await;
        }
        let mut stored = vec![None; files.len()];
        for (key, value) in page {
            if let Ok(at) = files.binary_search(&layout::read_offer_key(key.as_bytes())?) {
                stored[at] = Some(value);
            }
        }
        Ok(stored)
    }

    /// Writes down that the peer no longer offers these files. A session that was voided meanwhile withdraws nothing: the
    /// files may be those that the newer one announced.
    pub async fn withdraw(&self, by: &Session, files: &[FileId]) -> Result<(), CatalogueError> {
        let keys: Vec<_> = files.iter().map(layout::file_key).collect();
        for _ in 0..ATTEMPTS {
            let entries = self.storage.get(FILES, &keys).await?;
            let mut batch = Batch::new();
            for raw in entries.into_iter().flatten() {
                let FileEntry { no, .. } = layout::decode(FILES, &raw)?;
                delete_claim(&mut batch, by.number, no);
            }
            if batch.is_empty() {
                return Ok(());
            }
            note_cleared(&mut batch, by.number);
            require_session(&mut batch, by);
            if self.try_commit(batch, Durability::Buffered).await? {
                self.remembered.set_claims(by.number, files.iter().map(|id| (id, None)));
                return Ok(());
            }
            self.still_valid(by).await?;
        }
        Err(CatalogueError::Conflict)
    }

    /// Peers that are alive, can be reached somewhere and claim to have the file, in the order of their numbers; of very
    /// many those from a random one on. None where the catalogue does not have the file.
    pub async fn providers(&self, id: &FileId, now: u64) -> Result<Option<Vec<LivingClaim>>, CatalogueError> {
        let Some(file) = self.look_up(id, now).await? else { return Ok(None) };
        Ok(Some(self.living_claims(&file, now).await?.0))
    }

    /// The providers that somebody is told of who asks from this machine itself (`near`) or from elsewhere: no more than fit
    /// into a reply, and each as likely as any other. None where the catalogue does not have the file. Others who ask so
    /// soon get their answer from [`Catalogue::providers_remembered`].
    pub async fn providers_for(
        &self,
        id: &FileId,
        near: bool,
        now: u64,
    ) -> Result<Option<Vec<Provider>>, CatalogueError> {
        let Some(file) = self.look_up(id, now).await? else { return Ok(None) };
        let (mut living, _) = self.living_claims(&file, now).await?;
        living.retain(|claim| claim.lease.encoded.told(near).is_some());
        let (chosen, _) = living.partial_shuffle(&mut machine::rng(), MAX_PROVIDERS);
        let mut room = MAX_PROVIDER_BYTES;
        let fits = |LivingClaim { claim, lease, .. }: &LivingClaim| {
            room = room.checked_sub(lease.encoded.told(near)?.len() + CLAIM_BYTES)?;
            let mut endpoints = lease.record.endpoints.clone();
            endpoints.retain(|endpoint| near || !endpoint.is_loopback());
            let Claim { size, complete } = *claim;
            Some(Provider { peer: lease.record.id, endpoints, size, complete })
        };
        Ok(Some(chosen.iter().map_while(fits).collect()))
    }

    /// The reply of [`Catalogue::providers_for`] about a file that was asked for a moment ago; none where the database has to
    /// be asked.
    pub fn providers_remembered(&self, id: &FileId, near: bool, now: u64) -> Option<ProvidersReply> {
        let file = self.remembered.file(id, now)?;
        let chosen = self.remembered.choose(&file, near, now).or_else(|| {
            self.answer_again(&file, now)?;
            self.remembered.choose(&file, near, now)
        })?;
        let cache = self.cache.lock();
        let mut reply = ProvidersReply::default();
        for (peer, claim) in chosen {
            let Some(told) = cache.lease(peer)?.encoded.told(near) else { continue };
            if !reply.push(told, claim.size, claim.complete) {
                break;
            }
        }
        Some(reply)
    }

    /// The answers about a remembered file; none where the database has to be asked.
    pub(super) fn answers_for(&self, file: &RememberedFile, now: u64) -> Option<Arc<Answers>> {
        self.remembered.answers(file, now).or_else(|| self.answer_again(file, now))
    }

    /// Makes the answers about a file anew after something happened, where all leases are remembered that it takes and
    /// there are not very many.
    fn answer_again(&self, file: &RememberedFile, now: u64) -> Option<Arc<Answers>> {
        if file.claims() > MAX_AT_ONCE {
            return None;
        }
        let (claims, begun) = self.remembered.begin_answers(file);
        let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
        let (living, missing) = self.living_remembered(&peers, now);
        if !missing.is_empty() {
            return None;
        }
        self.note_answers(file, begun, &living);
        self.remembered.answers(file, now)
    }

    /// Notes the answers that follow from who is alive, and returns how many peers there are to be named.
    fn note_answers(&self, file: &RememberedFile, begun: Begun, living: &Living) -> u32 {
        let count = u32::try_from(reachable(living).min(MAX_COUNTED)).unwrap_or(u32::MAX);
        let answers = Answers::new(file, count, begun, living.until);
        self.remembered.note_answers(file, answers, &living.leases);
        count
    }

    /// How many peers [`Catalogue::providers`] would name, up to 1,000.
    pub(super) async fn count_providers(
        &self,
        file: &RememberedFile,
        now: u64,
    ) -> Result<u32, CatalogueError> {
        match self.answers_for(file, now) {
            Some(answers) => Ok(answers.count),
            None => Ok(self.living_claims(file, now).await?.1),
        }
    }

    /// As [`Catalogue::count_providers`], for a file that need not be remembered.
    pub(super) async fn count_claims(&self, file: FileNumber, now: u64) -> Result<u32, StorageError> {
        let claims = self.read_claims(file, MAX_COUNTED, now).await?;
        let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
        let living = self.living_peers(&peers, now).await?;
        Ok(u32::try_from(reachable(&living)).unwrap_or(u32::MAX))
    }

    /// The file as it is remembered or else in the database; none where the catalogue does not have it.
    pub(super) async fn look_up(
        &self,
        id: &FileId,
        now: u64,
    ) -> Result<Option<Arc<RememberedFile>>, StorageError> {
        if let Some(file) = self.remembered.file(id, now) {
            return Ok(Some(file));
        }
        let stamp = self.remembered.stamp(id);
        let Some(raw) = self.read(FILES, &layout::file_key(id)).await? else { return Ok(None) };
        let entry: FileEntry = layout::decode(FILES, &raw)?;
        let claims = self.read_claims(entry.no, MAX_EXAMINED, now).await?;
        let file = Arc::new(RememberedFile::new(*id, entry, claims, now));
        self.remembered.remember_file(&file, stamp);
        Ok(Some(file))
    }

    /// The living claims to a file, and how many they count for. Notes the answers that follow.
    async fn living_claims(
        &self,
        file: &RememberedFile,
        now: u64,
    ) -> Result<(Vec<LivingClaim>, u32), StorageError> {
        // Before anything is looked at: what changes meanwhile makes the answers void.
        let (claims, begun) = self.remembered.begin_answers(file);
        let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
        let living = self.living_peers(&peers, now).await?;
        let count = self.note_answers(file, begun, &living);
        let claims = claims.into_iter().zip(living.leases).filter_map(|((_, claim), lease)| {
            let lease = lease.filter(|lease| lease.encoded.told(true).is_some())?;
            Some(LivingClaim { peer: lease.record.id, claim, lease })
        });
        Ok((claims.collect(), count))
    }

    /// The claims to a file; where there are more than `most`, that many from a random peer on.
    async fn read_claims(
        &self,
        file: FileNumber,
        most: usize,
        now: u64,
    ) -> Result<Vec<(PeerNumber, Claim)>, StorageError> {
        let all = KeyRange::prefix(&layout::providers_prefix(file));
        let mut claims = self.scan_claims(all.clone(), most, now).await?;
        if claims.len() < most {
            return Ok(claims);
        }
        let from = PeerNumber(machine::rng().random_range(0..=self.highest_number()));
        let from = layout::provider_key(file, from).into_bytes();
        let second = KeyRange { start: Bound::Included(from.clone()), end: all.end };
        let first = KeyRange { start: all.start, end: Bound::Excluded(from) };
        claims = self.scan_claims(first, most, now).await?;
        let mut later = self.scan_claims(second, most, now).await?;
        claims.truncate(most.saturating_sub(later.len()));
        claims.append(&mut later);
        Ok(claims)
    }

    async fn scan_claims(
        &self,
        mut range: KeyRange,
        most: usize,
        now: u64,
    ) -> Result<Vec<(PeerNumber, Claim)>, StorageError> {
        let mut claims = Vec::new();
        while claims.len() < most {
            let wanted = super::PAGE.min(most - claims.len());
            let page = self.storage.scan(PROVIDERS, range.clone(), wanted).await?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            let mut bytes = 0;
            for (key, raw) in &page {
                bytes += key.as_bytes().len() + raw.len();
                let claim = layout::read_provider_key(key.as_bytes())
                    .and_then(|peer| Ok((peer, Claim::decode(raw)?)));
                claims.extend(self.damage.pass_over(claim, now)?);
            }
            // A page may be cut short by its bytes; any other short one is the end.
            if page.len() < wanted && bytes < self.storage.limits().max_page_bytes {
                break;
            }
        }
        Ok(claims)
    }

    /// Whether any peer that is alive claims to have the file, reachable or not.
    pub(super) async fn has_living_provider(&self, file: FileNumber, now: u64) -> Result<bool, StorageError> {
        let mut range = KeyRange::prefix(&layout::providers_prefix(file));
        loop {
            let page = self.storage.scan(PROVIDERS, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(false) };
            range = range.after(last);
            let peers = page
                .iter()
                .map(|(key, _)| layout::read_provider_key(key.as_bytes()))
                .collect::<Result<Vec<_>, _>>()?;
            if self.living_peers(&peers, now).await?.leases.iter().any(Option::is_some) {
                return Ok(true);
            }
        }
    }

    /// One page of what a peer offers, as it is in the database.
    pub(super) async fn offers_page(
        &self,
        peer: PeerNumber,
        after: Option<FileNumber>,
    ) -> Result<Vec<(FileNumber, Bytes)>, StorageError> {
        let mut range = KeyRange::prefix(&layout::offers_prefix(peer));
        if let Some(file) = after {
            range = range.after(&layout::offer_key(peer, file));
        }
        let page = self.storage.scan(OFFERS, range, super::PAGE).await?;
        page.into_iter().map(|(key, value)| Ok((layout::read_offer_key(key.as_bytes())?, value))).collect()
    }
}

/// How many of them can be reached somewhere.
fn reachable(living: &Living) -> usize {
    living.leases.iter().flatten().filter(|lease| lease.encoded.told(true).is_some()).count()
}

fn claim_of(offer: &Offer) -> Claim {
    Claim { size: offer.size, complete: offer.complete }
}
