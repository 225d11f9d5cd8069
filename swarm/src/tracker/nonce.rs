//! Nonces, which peers sign to prove their keys. A nonce contains its time and its number, authenticated together with its
//! connection by a keyed BLAKE3 hash. The tracker stores only the number of the last accepted nonce of each connection.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;

use crate::membership::per_connection::PerConnection;
use enjambre_core::protocol::message::Nonce;
use enjambre_core::runtime;
use enjambre_core::{ConnectionId, PeerInfo, UnixMillis};

/// The validity of a nonce.
const VALID: Duration = Duration::from_secs(60);
/// The size of the time and of the number in a nonce.
const FIELD: usize = 8;

/// Issues and accepts nonces. The key lasts for one run of the process.
pub struct Nonces {
    secret: [u8; 32],
    next: AtomicU64,
    /// The number of the last accepted nonce.
    accepted: Mutex<PerConnection<u64>>,
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonces")
    }
}

impl Default for Nonces {
    fn default() -> Self {
        Self { secret: runtime::rng().random(), next: AtomicU64::new(1), accepted: Mutex::default() }
    }
}

impl Nonces {
    /// Returns a nonce for this connection.
    pub fn issue(&self, connection: ConnectionId, now: UnixMillis) -> Nonce {
        self.encode(connection, now, runtime::count(&self.next))
    }

    fn encode(&self, connection: ConnectionId, time: UnixMillis, number: u64) -> Nonce {
        let mut nonce = [0; 32];
        nonce[..FIELD].copy_from_slice(&time.get().to_be_bytes());
        nonce[FIELD..2 * FIELD].copy_from_slice(&number.to_be_bytes());
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(&nonce[..2 * FIELD]).update(&connection.0.to_be_bytes());
        hasher.finalize_xof().fill(&mut nonce[2 * FIELD..]);
        Nonce(nonce)
    }

    /// Returns whether this nonce was issued for this connection in the last minute, and neither it nor a later one was
    /// accepted before.
    pub fn accept(&self, nonce: Nonce, peer: &PeerInfo, now: UnixMillis) -> bool {
        let (fields, _) = nonce.0.as_chunks::<FIELD>();
        let [issued, number, ..] = fields else { return false };
        let (issued, number) = (UnixMillis(u64::from_be_bytes(*issued)), u64::from_be_bytes(*number));
        let in_time = now.checked_since(issued).is_some_and(|age| age <= VALID);
        let expected = self.encode(peer.connection, issued, number);
        // The comparison of hashes takes constant time.
        if !in_time || blake3::Hash::from(expected.0) != blake3::Hash::from(nonce.0) {
            return false;
        }
        let mut accepted = self.accepted.lock();
        let is_new = accepted.get(peer.connection).is_none_or(|last| number > *last);
        if is_new {
            accepted.insert(peer, number);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::ConnectionHandle;

    fn peer(connection: u64) -> PeerInfo {
        let (connection, handle) = (ConnectionId(connection), ConnectionHandle::default());
        PeerInfo { connection, handle, address: None, identity: None }
    }

    #[test]
    fn nonce_is_bound_to_connection_process_and_minute() {
        let nonces = Nonces::default();
        let nonce = nonces.issue(ConnectionId(1), UnixMillis(1000));
        assert!(!nonces.accept(nonce, &peer(1), UnixMillis(61_001)));
        assert!(!nonces.accept(nonce, &peer(1), UnixMillis(999)));
        assert!(!nonces.accept(nonce, &peer(2), UnixMillis(1000)));
        assert!(!Nonces::default().accept(nonce, &peer(1), UnixMillis(1000)));
        for at in 0..32 {
            let mut other = nonce;
            other.0[at] ^= 1;
            assert!(!nonces.accept(other, &peer(1), UnixMillis(1000)), "byte {at}");
        }
        assert!(nonces.accept(nonce, &peer(1), UnixMillis(61_000)));
    }

    #[test]
    fn nonce_is_accepted_once() {
        let nonces = Nonces::default();
        let [first, second, third] = [1, 1, 1].map(|_| nonces.issue(ConnectionId(1), UnixMillis(0)));
        assert!(nonces.accept(second, &peer(1), UnixMillis(0)));
        assert!(!nonces.accept(second, &peer(1), UnixMillis(0)));
        assert!(!nonces.accept(first, &peer(1), UnixMillis(0)), "issued before the accepted one");
        assert!(nonces.accept(third, &peer(1), UnixMillis(0)));
    }
}
