//! Providers of files: claims of peers that are alive.

use std::ops::Bound;
use std::sync::atomic::Ordering;

use rand::RngExt;

use super::access::PAGE;
use super::catalogue::Catalogue;
use super::layout::{self, Claim, FILES, FileEntry, FileNumber, PROVIDERS, PeerNumber};
use enjambre_core::runtime;
use enjambre_core::{FileId, KeyRange, StorageError, StorageExt, UnixMillis};

/// The largest count of providers; a larger one is reported as this.
pub(crate) const MAX_COUNTED: usize = 1000;
/// The number of claims to a file that are read to choose providers.
const MAX_CLAIMS: usize = 4000;

impl Catalogue {
    /// Returns the file and at most 4,000 claims to it in the order of the peers, including claims of peers that are not alive.
    /// From a file with more claims a random section is returned. `None` if the catalogue does not have the file.
    pub async fn file_claims(
        &self,
        id: &FileId,
        now: UnixMillis,
    ) -> Result<Option<(FileEntry, Vec<(PeerNumber, Claim)>)>, StorageError> {
        let Some((entry, _)) = self.read_record::<FileEntry>(FILES, &layout::file_key(id)).await? else {
            return Ok(None);
        };
        let claims = self.read_claims(entry.no, MAX_CLAIMS, now).await?;
        Ok(Some((entry, claims)))
    }

    /// Returns the number of living providers that have the whole file, among at most 1,000 claims.
    pub(super) async fn count_providers(
        &self,
        file: FileNumber,
        now: UnixMillis,
    ) -> Result<u32, StorageError> {
        Ok(self.count_claims(file, true, now).await?.0)
    }

    /// As [`Catalogue::count_providers`] for a requester on this or another host, with the number of claims that were read.
    pub(super) async fn count_claims(
        &self,
        file: FileNumber,
        is_local: bool,
        now: UnixMillis,
    ) -> Result<(u32, usize), StorageError> {
        let claims = self.read_claims(file, MAX_COUNTED, now).await?;
        let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
        let alive = self.alive_peers(&peers, now).await?;
        let count = alive.complete_providers(&claims, is_local);
        Ok((u32::try_from(count).unwrap_or(u32::MAX), claims.len()))
    }

    /// Returns the claims to a file, or `limit` of them starting at a random peer if there are more.
    async fn read_claims(
        &self,
        file: FileNumber,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Vec<(PeerNumber, Claim)>, StorageError> {
        let all = KeyRange::prefix(&layout::providers_prefix(file));
        let mut claims = self.scan_claims(all.clone(), limit, now).await?;
        if claims.len() < limit {
            return Ok(claims);
        }
        let from = PeerNumber(runtime::rng().random_range(0..=self.highest_number.load(Ordering::Relaxed)));
        let from = layout::provider_key(file, from).into_bytes();
        let second = KeyRange { start: Bound::Included(from.clone()), end: all.end };
        let first = KeyRange { start: all.start, end: Bound::Excluded(from) };
        claims = self.scan_claims(first, limit, now).await?;
        let mut later = self.scan_claims(second, limit, now).await?;
        claims.truncate(limit.saturating_sub(later.len()));
        claims.append(&mut later);
        Ok(claims)
    }

    async fn scan_claims(
        &self,
        mut range: KeyRange,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Vec<(PeerNumber, Claim)>, StorageError> {
        let mut claims = Vec::new();
        while claims.len() < limit {
            let wanted = PAGE.min(limit - claims.len());
            let page = self.storage.scan(PROVIDERS, range.clone(), wanted).await?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            let mut bytes = 0;
            for (key, raw) in &page {
                bytes += key.as_bytes().len() + raw.len();
                let claim = layout::read_provider_key(key.as_bytes())
                    .and_then(|peer| Ok((peer, Claim::decode(raw)?)));
                claims.extend(self.damage.skip(claim, now)?);
            }
            // A page may be limited by its bytes. Any other short page is the end, which saves a read.
            if page.len() < wanted && bytes < self.storage.limits().max_page_bytes {
                break;
            }
        }
        Ok(claims)
    }

    /// Whether any living peer claims to have the file, with or without endpoints.
    pub(super) async fn has_living_provider(
        &self,
        file: FileNumber,
        now: UnixMillis,
    ) -> Result<bool, StorageError> {
        let range = KeyRange::prefix(&layout::providers_prefix(file));
        let mut pages = self.storage.pages(PROVIDERS, range, PAGE);
        while let Some(page) = pages.next().await? {
            let peers = page
                .iter()
                .map(|(key, _)| layout::read_provider_key(key.as_bytes()))
                .collect::<Result<Vec<_>, _>>()?;
            if self.alive_peers(&peers, now).await?.leases.iter().any(Option::is_some) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
