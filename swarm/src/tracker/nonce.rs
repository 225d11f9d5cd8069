//! Nonces, which peers sign to prove their keys. The tracker stores no state: a nonce contains its time, authenticated together
//! with its connection by a keyed BLAKE3 hash.

use std::time::Duration;

use rand::RngExt;

use enjambre_core::protocol::message::Nonce;
use enjambre_core::runtime;
use enjambre_core::{ConnectionId, UnixMillis};

/// The validity of a nonce.
const VALID: Duration = Duration::from_secs(60);
const TIME: usize = 8;

/// Issues and verifies nonces. The key lasts for one run of the process.
pub struct Nonces {
    secret: [u8; 32],
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonces")
    }
}

impl Default for Nonces {
    fn default() -> Self {
        Self { secret: runtime::rng().random() }
    }
}

impl Nonces {
    /// Returns a nonce for this connection.
    pub fn issue(&self, connection: ConnectionId, now: UnixMillis) -> Nonce {
        let time = now.get().to_be_bytes();
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(&time).update(&connection.0.to_be_bytes());
        let mut nonce = [0; 32];
        nonce[..TIME].copy_from_slice(&time);
        hasher.finalize_xof().fill(&mut nonce[TIME..]);
        Nonce(nonce)
    }

    /// Returns whether this nonce was issued for this connection in the last minute.
    pub fn is_valid(&self, nonce: Nonce, connection: ConnectionId, now: UnixMillis) -> bool {
        let Some(time) = nonce.0.first_chunk::<TIME>() else { return false };
        let issued = UnixMillis(u64::from_be_bytes(*time));
        let in_time = now.checked_since(issued).is_some_and(|age| age <= VALID);
        let expected = self.issue(connection, issued);
        // The comparison of hashes takes constant time.
        in_time && blake3::Hash::from(expected.0) == blake3::Hash::from(nonce.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_is_bound_to_connection_process_and_minute() {
        let nonces = Nonces::default();
        let nonce = nonces.issue(ConnectionId(1), UnixMillis(1000));
        assert!(nonces.is_valid(nonce, ConnectionId(1), UnixMillis(61_000)));
        assert!(!nonces.is_valid(nonce, ConnectionId(1), UnixMillis(61_001)));
        assert!(!nonces.is_valid(nonce, ConnectionId(1), UnixMillis(999)));
        assert!(!nonces.is_valid(nonce, ConnectionId(2), UnixMillis(1000)));
        assert!(!Nonces::default().is_valid(nonce, ConnectionId(1), UnixMillis(1000)));
        for at in 0..32 {
            let mut other = nonce;
            other.0[at] ^= 1;
            assert!(!nonces.is_valid(other, ConnectionId(1), UnixMillis(1000)), "byte {at}");
        }
    }
}
