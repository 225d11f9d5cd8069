//! Announcement and withdrawal of offers.

use std::net::IpAddr;
use std::ops::Bound;

use bytes::Bytes;
use tokio::time::timeout;

use super::access::{ATTEMPTS, TURN_TIMEOUT, replace, require_same};
use super::catalogue::{Catalogue, FILE_NUMBER_BYTES};
use super::claims::{self, Entries};
use super::error::CatalogueError;
use super::layout::{
    self, CLEARED, Claim, FILES, FileEntry, FileNumber, MAX_NUMBER, OFFERS, PROVIDERS, PeerNumber,
};
use super::peers::Session;
use enjambre_core::model::network::network_of;
use enjambre_core::{Batch, Durability, FileId, KeyRange, Offer, PieceLayout, StorageError, UnixMillis};

/// The number of entries scanned for each announced claim before the claims are read one by one.
const SCANNED_PER_CLAIM: usize = 4;
/// The number of files in an announcement or withdrawal that takes no turn.
const SMALL_CHANGE: usize = 16;

/// An announced file.
type Announced = (FileNumber, FileId, Claim);

impl Catalogue {
    /// Records that the peer offers these files. Returns the files that the catalogue does not have; their offers are
    /// ignored. Unchanged claims are not written again.
    pub async fn announce(
        &self,
        by: &Session,
        offers: &[Offer],
        now: UnixMillis,
    ) -> Result<Vec<FileId>, CatalogueError> {
        for offer in offers {
            PieceLayout::new(offer.size)?;
        }
        for _ in 0..ATTEMPTS {
            let mut batch = Batch::new();
            let (unknown, mut announced) = self.resolve(offers, now, &mut batch).await?;
            // In the order of the keys. The last of several claims to one file counts.
            announced.sort_by_key(|(number, ..)| *number);
            announced.reverse();
            announced.dedup_by_key(|(number, ..)| *number);
            announced.reverse();
            self.add_claims(by, &announced, &mut batch).await?;
            let mut offering = None;
            if announced.is_empty() {
                claims::require_session(&mut batch, by);
            } else {
                offering = self.require_offering_session(&mut batch, by, now).await?;
            }
            if batch.writes.is_empty() || self.try_commit(batch, Durability::Buffered).await? {
                self.cache_offering(by, offering, now);
                self.listeners.notify(|listener| {
                    announced
                        .iter()
                        .for_each(|(_, id, claim)| listener.claim_changed(by.number, id, Some(*claim)));
                });
                return Ok(unknown);
            }
            self.check_session(by).await?;
            for offer in offers {
                self.file_numbers.remove(&offer.id);
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Runs an announcement or withdrawal of `count` files. Large ones take turns, so that those that wait delay no lookups:
    /// those of a peer one after the other, and then those of an address.
    ///
    /// # Errors
    /// [`CatalogueError::Busy`] if the wait was too long.
    pub async fn change_in_turn<T>(
        &self,
        by: &Session,
        requester: Option<IpAddr>,
        count: usize,
        change: impl Future<Output = Result<T, CatalogueError>>,
    ) -> Result<T, CatalogueError> {
        if count <= SMALL_CHANGE {
            return change.await;
        }
        let turns = async {
            let own = self.large_changes_of_peers.turn(Some(by.number)).await;
            (own, self.large_changes.turn(requester.map(network_of)).await)
        };
        let _turns = timeout(TURN_TIMEOUT, turns).await.map_err(|_| CatalogueError::Busy)?;
        change.await
    }

    /// Returns the ids that the catalogue does not have, and the others with their numbers. The batch clears the expiry mark
    /// of files that have one.
    async fn resolve(
        &self,
        offers: &[Offer],
        now: UnixMillis,
        batch: &mut Batch,
    ) -> Result<(Vec<FileId>, Vec<Announced>), CatalogueError> {
        let mut announced = Vec::with_capacity(offers.len());
        let mut missing = Vec::new();
        for offer in offers {
            match self.file_numbers.get(&offer.id, now) {
                Some(number) => announced.push((number, offer.id, claim_of(offer))),
                None => missing.push(offer),
            }
        }
        let keys: Vec<_> = missing.iter().map(|offer| layout::file_key(&offer.id)).collect();
        let stamps: Vec<_> = missing.iter().map(|offer| self.file_numbers.stamp(&offer.id)).collect();
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
                // Conflicts with a concurrent expiry.
                replace(batch, FILES, key, raw, &FileEntry { gone: None, ..entry });
            } else {
                self.file_numbers.insert(offer.id, entry.no, FILE_NUMBER_BYTES, now, stamp);
            }
        }
        Ok((unknown, announced))
    }

    /// Adds those of the claims to the batch that are not stored yet. The claims are in the order of their files.
    async fn add_claims(
        &self,
        by: &Session,
        announced: &[Announced],
        batch: &mut Batch,
    ) -> Result<(), StorageError> {
        let peer = layout::peer_key(by.number);
        let cleared = self.read(CLEARED, &peer).await?;
        let files: Vec<_> = announced.iter().map(|(file, ..)| *file).collect();
        let stored = self.stored_offers(by.number, &files).await?;
        let mut skipped = false;
        let (mut claims, mut offers) = (Entries::default(), Entries::default());
        for ((file, _, claim), raw) in announced.iter().zip(stored) {
            match raw.map(|raw| Claim::decode_offer(&raw)) {
                Some(Ok((stored, began))) if stored == *claim => {
                    skipped = true;
                    if began == by.began.min(UnixMillis(MAX_NUMBER)) {
                        continue;
                    }
                }
                // A damaged entry is replaced.
                _ => claims.add(layout::provider_key_bytes(*file, by.number), |value| claim.write(value)),
            }
            offers.add(layout::offer_key_bytes(by.number, *file), |value| claim.write_offer(by.began, value));
        }
        claims.put_into(PROVIDERS, batch);
        offers.put_into(OFFERS, batch);
        if skipped {
            require_same(batch, CLEARED, peer, cleared);
        }
        Ok(())
    }

    /// Returns the stored values of `offers` for these files, which are in ascending order.
    async fn stored_offers(
        &self,
        peer: PeerNumber,
        files: &[FileNumber],
    ) -> Result<Vec<Option<Bytes>>, StorageError> {
        let (Some(first), Some(last)) = (files.first(), files.last()) else { return Ok(Vec::new()) };
        // Usually the peer has few other offers between the first and the last of these, so that one scan is cheaper.
        let bound = |file| Bound::Included(layout::offer_key(peer, file).into_bytes());
        let range = KeyRange { start: bound(*first), end: bound(*last) };
        let limit = files.len() * SCANNED_PER_CLAIM;
        let page = self.storage.scan(OFFERS, range, limit).await?;
        let bytes: usize = page.iter().map(|(key, value)| key.as_bytes().len() + value.len()).sum();
        if page.len() >= limit || bytes >= self.storage.limits().max_page_bytes {
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

    /// Records that the peer no longer offers these files.
    ///
    /// # Errors
    /// [`CatalogueError::Unauthorized`] if the session was voided meanwhile, because a newer session may have announced the same
    /// files.
    pub async fn withdraw(&self, by: &Session, files: &[FileId]) -> Result<(), CatalogueError> {
        let keys: Vec<_> = files.iter().map(layout::file_key).collect();
        for _ in 0..ATTEMPTS {
            let entries = self.storage.get(FILES, &keys).await?;
            let mut batch = Batch::new();
            for raw in entries.into_iter().flatten() {
                let FileEntry { no, .. } = layout::decode(FILES, &raw)?;
                claims::delete_claim(&mut batch, by.number, no);
            }
            if batch.is_empty() {
                return Ok(());
            }
            claims::mark_cleared(&mut batch, by.number);
            claims::require_session(&mut batch, by);
            if self.try_commit(batch, Durability::Buffered).await? {
                self.listeners.notify(|listener| {
                    files.iter().for_each(|id| listener.claim_changed(by.number, id, None));
                });
                return Ok(());
            }
            self.check_session(by).await?;
        }
        Err(CatalogueError::Conflict)
    }
}

fn claim_of(offer: &Offer) -> Claim {
    Claim { size: offer.size, complete: offer.complete }
}
