//! Who claims to have which file: announce, withdraw, and the claims of peers that are alive.

use std::collections::{HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::error::CatalogueError;
use super::layout::{self, ClaimRecord, FILES, FileEntry, LeaseRecord, OFFERS, PROVIDERS, RECORD};
use super::peers::Session;
use super::{ATTEMPTS, Catalogue};
use crate::model::id::{FileId, PeerId};
use crate::model::layout::PieceLayout;
use crate::model::record::Offer;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, KeyRange};

/// How many claims are looked at to count the providers of one file; a larger count is reported as this.
const MAX_COUNTED: usize = 1000;
/// How many claims are looked at to name providers of one file.
const MAX_EXAMINED: usize = 4000;

/// A living peer's claim to have a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingClaim {
    /// Who claims it.
    pub peer: PeerId,
    /// What it claims.
    pub claim: ClaimRecord,
    /// Where it can be reached.
    pub lease: Arc<LeaseRecord>,
}

pub(super) fn put_claim(batch: &mut Batch, by: &Session, file: &FileId, size: u64, complete: bool) {
    let claim = ClaimRecord { v: RECORD, size, complete, hello: by.began };
    batch.put(PROVIDERS, layout::provider_key(file, &by.peer), layout::encode(&claim));
    batch.put(OFFERS, layout::offer_key(&by.peer, file), layout::MARK);
}

pub(super) fn delete_claim(batch: &mut Batch, peer: &PeerId, file: &FileId) {
    batch.delete(PROVIDERS, layout::provider_key(file, peer));
    batch.delete(OFFERS, layout::offer_key(peer, file));
}

impl Catalogue {
    /// Writes down that the peer offers these files. Returns those that the catalogue does not have; they are
    /// left out.
    pub async fn announce(&self, by: &Session, offers: &[Offer]) -> Result<Vec<FileId>, CatalogueError> {
        for offer in offers {
            PieceLayout::new(offer.size)?;
        }
        let keys: Vec<_> = offers.iter().map(|offer| layout::file_key(&offer.id)).collect();
        for _ in 0..ATTEMPTS {
            let entries = self.storage.get(FILES, &keys).await?;
            let mut batch = Batch::new();
            let mut unknown = Vec::new();
            let mut revived = HashSet::new();
            for ((offer, key), entry) in offers.iter().zip(&keys).zip(entries) {
                let Some(raw) = entry else {
                    unknown.push(offer.id);
                    continue;
                };
                let entry: FileEntry = layout::decode(FILES, &raw)?;
                if entry.gone.is_some() && revived.insert(offer.id) {
                    // Otherwise it could be forgotten in the same moment.
                    batch.require(FILES, key.clone(), raw);
                    batch.put(FILES, key.clone(), layout::encode(&FileEntry { gone: None, ..entry }));
                }
                put_claim(&mut batch, by, &offer.id, offer.size, offer.complete);
            }
            if batch.is_empty() || self.try_commit(batch, Durability::Buffered).await? {
                return Ok(unknown);
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Writes down that the peer no longer offers these files.
    pub async fn withdraw(&self, by: &Session, files: &[FileId]) -> Result<(), CatalogueError> {
        let mut batch = Batch::new();
        for file in files {
            delete_claim(&mut batch, &by.peer, file);
        }
        if !batch.is_empty() {
            self.storage.commit(batch, Durability::Buffered).await?;
        }
        Ok(())
    }

    /// Peers that are alive, can be reached somewhere and claim to have the file, beginning at a random one.
    pub async fn providers(&self, file: &FileId, now: u64) -> Result<Vec<LivingClaim>, CatalogueError> {
        let all = KeyRange::prefix(file.as_bytes());
        let somewhere = layout::provider_key(file, &PeerId::from_bytes(rand::random())).into_bytes();
        let second = KeyRange { start: Bound::Included(somewhere.clone()), end: all.end.clone() };
        let first = KeyRange { start: all.start, end: Bound::Excluded(somewhere) };
        let mut living = self.living_claims(second, MAX_EXAMINED, now).await?;
        if living.len() < MAX_EXAMINED {
            living.extend(self.living_claims(first, MAX_EXAMINED - living.len(), now).await?);
        }
        Ok(living)
    }

    /// How many peers [`Catalogue::providers`] would name.
    pub async fn count_providers(&self, file: &FileId, now: u64) -> Result<u32, CatalogueError> {
        let living = self.living_claims(KeyRange::prefix(file.as_bytes()), MAX_COUNTED, now).await?;
        Ok(u32::try_from(living.len()).unwrap_or(u32::MAX))
    }

    /// Whether any peer that is alive claims to have the file, reachable or not.
    pub(super) async fn has_living_provider(&self, file: &FileId, now: u64) -> Result<bool, StorageError> {
        let mut range = KeyRange::prefix(file.as_bytes());
        loop {
            let page = self.storage.scan(PROVIDERS, range.clone(), super::PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(false) };
            range = range.after(last);
            let peers = page
                .iter()
                .map(|(key, _)| layout::read_provider_key(key.as_bytes()))
                .collect::<Result<Vec<_>, _>>()?;
            if !self.living_peers(&peers, now).await?.is_empty() {
                return Ok(true);
            }
        }
    }

    async fn living_claims(
        &self,
        mut range: KeyRange,
        mut examine: usize,
        now: u64,
    ) -> Result<Vec<LivingClaim>, StorageError> {
        let mut living = Vec::new();
        while examine > 0 {
            let wanted = examine.min(super::PAGE);
            let page = self.storage.scan(PROVIDERS, range.clone(), wanted).await?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            examine = examine.saturating_sub(page.len());
            let mut claims = Vec::with_capacity(page.len());
            for (key, raw) in &page {
                claims.push((layout::read_provider_key(key.as_bytes())?, raw));
            }
            let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
            let mut leases: HashMap<PeerId, Arc<LeaseRecord>> = self.living_peers(&peers, now).await?;
            for (peer, raw) in claims {
                let Some(lease) = leases.remove(&peer).filter(|lease| !lease.endpoints.is_empty()) else {
                    continue;
                };
                living.push(LivingClaim { peer, claim: layout::decode(PROVIDERS, raw)?, lease });
            }
        }
        Ok(living)
    }

    /// One page of what a peer offers, as it is in the database, and the raw claims.
    pub(super) async fn offers_page(
        &self,
        peer: &PeerId,
        after: Option<&FileId>,
    ) -> Result<Vec<(FileId, Option<Bytes>)>, StorageError> {
        let mut range = KeyRange::prefix(peer.as_bytes());
        if let Some(file) = after {
            range = range.after(&layout::offer_key(peer, file));
        }
        let page = self.storage.scan(OFFERS, range, super::PAGE).await?;
        let files = page
            .iter()
            .map(|(key, _)| layout::read_offer_key(key.as_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<_> = files.iter().map(|file| layout::provider_key(file, peer)).collect();
        let claims = self.storage.get(PROVIDERS, &keys).await?;
        Ok(files.into_iter().zip(claims).collect())
    }
}
