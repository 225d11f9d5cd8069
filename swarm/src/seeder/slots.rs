//! The connections with pending requests, and their slots.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use enjambre_core::model::network::network_of;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::MAX_CANCEL;
use enjambre_core::{ConnectionId, PeerInfo, RequestId};

/// Maximum number of connections with pending piece requests. Connections from one address occupy at most half of the slots
/// that others leave free. Further connections get the reply `busy`.
const SLOTS: usize = 256;
/// Maximum number of pieces in preparation for one connection.
const PER_CONNECTION: usize = 3;
/// When to retry after `busy`.
const RETRY_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Slot {
    network: Option<IpAddr>,
    /// Permits for pieces in preparation.
    permits: Arc<Semaphore>,
    /// Pending requests, so that they can be cancelled.
    requests: HashMap<RequestId, CancellationToken>,
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    used: Mutex<HashMap<ConnectionId, Slot>>,
}

/// A pending request. Ends when dropped.
#[derive(Debug)]
pub(super) struct PendingRequest<'a> {
    slots: &'a Slots,
    connection: ConnectionId,
    id: RequestId,
    cancelled: CancellationToken,
    permits: Arc<Semaphore>,
}

impl PendingRequest<'_> {
    /// Runs the work of the request in turn with other requests of the connection, until it is cancelled.
    pub(super) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, ErrorReply>>,
    ) -> Result<T, ErrorReply> {
        let work = async {
            let _permit = self.permits.acquire().await.ok();
            work.await
        };
        let result = self.cancelled.run_until_cancelled(work).await;
        result.unwrap_or_else(|| Err(ErrorReply::new(ErrorCode::Busy, "cancelled")))
    }
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        let mut used = self.slots.used.lock();
        if let Some(slot) = used.get_mut(&self.connection) {
            slot.requests.remove(&self.id);
            if slot.requests.is_empty() {
                used.remove(&self.connection);
            }
        }
    }
}

impl Slots {
    /// Registers a request. Fails with `busy` if the connection has no slot and there is none for it.
    pub(super) fn register(&self, peer: &PeerInfo, id: RequestId) -> Result<PendingRequest<'_>, ErrorReply> {
        let connection = peer.connection;
        let network = peer.address.map(network_of);
        let mut used = self.used.lock();
        if !used.contains_key(&connection) && !has_free_slot(&used, network) {
            return Err(ErrorReply::new(ErrorCode::Busy, "no free slot").retry_after(RETRY_AFTER));
        }
        let slot = used.entry(connection).or_insert_with(|| Slot {
            network,
            permits: Arc::new(Semaphore::new(PER_CONNECTION)),
            requests: HashMap::new(),
        });
        if slot.requests.contains_key(&id) {
            return Err(ErrorReply::new(ErrorCode::Malformed, format!("request id {id} is in use")));
        }
        let cancelled = CancellationToken::new();
        slot.requests.insert(id, cancelled.clone());
        Ok(PendingRequest { slots: self, connection, id, cancelled, permits: Arc::clone(&slot.permits) })
    }

    pub(super) fn cancel(&self, connection: ConnectionId, ids: &[RequestId]) {
        if let Some(slot) = self.used.lock().get(&connection) {
            for id in ids.iter().take(MAX_CANCEL) {
                if let Some(token) = slot.requests.get(id) {
                    token.cancel();
                }
            }
        }
    }

    pub(super) fn request_count(&self) -> u64 {
        self.used.lock().values().map(|slot| slot.requests.len() as u64).sum()
    }
}

/// Whether there is a slot for another connection from this network.
fn has_free_slot(used: &HashMap<ConnectionId, Slot>, network: Option<IpAddr>) -> bool {
    let free = SLOTS.saturating_sub(used.len());
    if free > SLOTS / 2 || network.is_none() {
        return free > 0;
    }
    // One network never occupies all slots, however many connections it opens.
    let taken = used.values().filter(|slot| slot.network == network).count();
    free > 0 && taken < (free + taken).div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::ConnectionHandle;

    /// A connection from this address, or without an address.
    fn connection(number: u64, from: Option<u8>) -> PeerInfo {
        let address = from.map(|last| IpAddr::from([10, 0, 0, last]));
        let handle = ConnectionHandle::default();
        PeerInfo { connection: ConnectionId(number), handle, address, identity: None }
    }

    #[test]
    fn address_takes_half_of_free_slots() {
        let slots = Slots::default();
        let mut held = Vec::new();
        let mut taken = Vec::new();
        let mut number = 0;
        for from in 1..=8 {
            let before = held.len();
            for _ in 0..SLOTS {
                number += 1;
                let peer = connection(number, Some(from));
                match slots.register(&peer, RequestId(1)) {
                    Ok(request) => held.push(request),
                    Err(error) => assert_eq!(error.code, ErrorCode::Busy),
                }
            }
            taken.push(held.len() - before);
        }
        assert_eq!(taken, [128, 64, 32, 16, 8, 4, 2, 1]);
        // A connection with a slot may send further requests, and the last slot is for another address.
        assert!(slots.register(&connection(1, Some(1)), RequestId(2)).is_ok());
        let last = slots.register(&connection(10_000, Some(9)), RequestId(1)).unwrap();
        assert!(slots.register(&connection(10_001, Some(10)), RequestId(1)).is_err(), "no slot is free");
        drop((held, last));
        assert!(slots.used.lock().is_empty());
    }

    #[test]
    fn connections_without_address_take_all_slots() {
        let slots = Slots::default();
        let take = |number| slots.register(&connection(number, None), RequestId(1));
        let held: Vec<_> = (0..SLOTS as u64).map(|number| take(number).unwrap()).collect();
        assert!(take(10_000).is_err());
        drop(held);
    }
}
