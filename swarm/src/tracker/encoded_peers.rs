//! Peers as they are encoded in replies to `providers`.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::catalogue::layout::{Claim, LeaseRecord, PeerNumber};
use enjambre_core::protocol::lookup::{EncodedPeer, ProvidersReply};
use enjambre_core::{Endpoint, SessionId, UnixMillis};

/// The number of cached peers.
const CAPACITY: usize = 16_384;

#[derive(Debug)]
struct Entry {
    session: SessionId,
    began: UnixMillis,
    endpoints: Vec<Endpoint>,
    encoded: EncodedPeer,
}

/// A cache of encoded peers.
#[derive(Debug, Default)]
pub(super) struct EncodedPeers(Mutex<HashMap<PeerNumber, Entry>>);

impl EncodedPeers {
    /// Caches the peers of these leases. Returns for each whether it is reachable for local and for remote requesters.
    pub(super) fn insert<'a>(
        &self,
        leases: impl Iterator<Item = (PeerNumber, Option<&'a LeaseRecord>)>,
    ) -> Vec<(bool, bool)> {
        let entries = &mut *self.0.lock();
        let visible =
            |encoded: &EncodedPeer| [true, false].map(|local| encoded.visible_to(local).is_some()).into();
        let reachable = leases.map(|(peer, lease)| {
            let Some(lease) = lease else { return (false, false) };
            if let Some(entry) = entries.get(&peer)
                && (entry.session == lease.session && entry.endpoints == lease.endpoints
                    || entry.began > lease.began)
            {
                return visible(&entry.encoded);
            }
            let encoded = EncodedPeer::new(&lease.id, &lease.endpoints);
            let reachable = visible(&encoded);
            if entries.len() >= CAPACITY {
                entries.clear();
            }
            let LeaseRecord { session, began, ref endpoints, .. } = *lease;
            entries.insert(peer, Entry { session, began, endpoints: endpoints.clone(), encoded });
            reachable
        });
        reachable.collect()
    }

    /// Encodes a reply that names these peers, as far as they fit. `None` if one of them is not cached.
    pub(super) fn reply(
        &self,
        is_local: bool,
        claims: impl Iterator<Item = (PeerNumber, Claim)>,
    ) -> Option<ProvidersReply> {
        let entries = self.0.lock();
        let mut reply = ProvidersReply::default();
        for (peer, claim) in claims {
            let Some(encoded) = entries.get(&peer)?.encoded.visible_to(is_local) else { continue };
            if !reply.push(encoded, claim.size, claim.complete) {
                break;
            }
        }
        Some(reply)
    }
}
