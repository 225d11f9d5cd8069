//! The peers that are online.

use super::access::{PAGE, after_key};
use super::catalogue::Catalogue;
use super::layout::{self, Claim, LEASES, LeaseRecord, MAX_NUMBER, OFFERS, PeerNumber};
use super::providers::MAX_COUNTED;
use super::sweep::read_lease;
use enjambre_core::{Endpoint, KeyRange, PeerId, StorageError, StorageExt, UnixMillis};

/// A peer that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlinePeer {
    /// The peer.
    pub peer: PeerId,
    /// The endpoints that other peers receive.
    pub endpoints: Vec<Endpoint>,
    /// The number of files that it offers, at most 1,000.
    pub files: usize,
    /// The end of its lease without another renewal.
    pub until: UnixMillis,
}

impl Catalogue {
    /// Returns at most `limit` peers that are alive, in the order of their numbers, starting behind `after`. The number of the
    /// last one is returned too, unless it is the end.
    pub async fn online_peers(
        &self,
        after: Option<PeerNumber>,
        limit: usize,
        now: UnixMillis,
    ) -> Result<(Vec<OnlinePeer>, Option<PeerNumber>), StorageError> {
        let mut entries = self.storage.entries(LEASES, after_key(after.map(layout::peer_key)), PAGE);
        let mut peers = Vec::new();
        while let Some((key, raw)) = entries.next().await? {
            let Some((number, lease)) = self.damage.skip(read_lease(&key, &raw), now)? else { continue };
            let until = self.leases.lock().alive_until(number, &lease, now);
            let Some(until) = until else { continue };
            let files = self.count_offers(number, &lease).await?;
            peers.push(OnlinePeer { peer: lease.id, endpoints: lease.endpoints, files, until });
            if peers.len() >= limit {
                return Ok((peers, Some(number)));
            }
        }
        Ok((peers, None))
    }

    /// Returns the number of claims of the current session of a peer.
    async fn count_offers(&self, peer: PeerNumber, lease: &LeaseRecord) -> Result<usize, StorageError> {
        let current = lease.began.min(UnixMillis(MAX_NUMBER));
        let range = KeyRange::prefix(&layout::offers_prefix(peer));
        let (mut pages, mut count) = (self.storage.pages(OFFERS, range, PAGE), 0);
        while count < MAX_COUNTED
            && let Some(page) = pages.next().await?
        {
            let is_current =
                |value: &[u8]| Claim::decode_offer(value).is_ok_and(|(_, began)| began == current);
            count += page.iter().filter(|(_, value)| is_current(value)).count();
        }
        Ok(count.min(MAX_COUNTED))
    }
}
