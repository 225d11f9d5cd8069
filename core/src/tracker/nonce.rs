//! What a peer signs to prove its key. Nothing is kept of a nonce that was given out: it says itself when and for
//! which connection it was made, under a keyed BLAKE3 hash.

use rand::RngExt;

use crate::machine;
use crate::protocol::message::Nonce;
use crate::transport::ConnectionId;

/// How long a nonce is valid, in milliseconds.
const VALID_MS: u64 = 60_000;
const TIME: usize = 8;

/// Makes nonces and knows them again, for one run of the process.
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
        Self { secret: machine::rng().random() }
    }
}

impl Nonces {
    /// A nonce for this connection.
    pub fn make(&self, connection: ConnectionId, now: u64) -> Nonce {
        let time = now.to_be_bytes();
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(&time).update(&connection.0.to_be_bytes());
        let mut nonce = [0; 32];
        nonce[..TIME].copy_from_slice(&time);
        hasher.finalize_xof().fill(&mut nonce[TIME..]);
        Nonce(nonce)
    }

    /// Whether this nonce was made for this connection in the last minute.
    pub fn is_valid(&self, nonce: Nonce, connection: ConnectionId, now: u64) -> bool {
        let Some(time) = nonce.0.first_chunk::<TIME>() else { return false };
        let made = u64::from_be_bytes(*time);
        let in_time = now.checked_sub(made).is_some_and(|age| age <= VALID_MS);
        let expected = self.make(connection, made);
        // Compared as hashes, so that the time it takes tells nothing.
        in_time && blake3::Hash::from(expected.0) == blake3::Hash::from(nonce.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_for_its_connection_its_process_and_a_minute() {
        let nonces = Nonces::default();
        let nonce = nonces.make(ConnectionId(1), 1000);
        assert!(nonces.is_valid(nonce, ConnectionId(1), 61_000));
        assert!(!nonces.is_valid(nonce, ConnectionId(1), 61_001));
        assert!(!nonces.is_valid(nonce, ConnectionId(1), 999));
        assert!(!nonces.is_valid(nonce, ConnectionId(2), 1000));
        assert!(!Nonces::default().is_valid(nonce, ConnectionId(1), 1000));
        for at in 0..32 {
            let mut other = nonce;
            other.0[at] ^= 1;
            assert!(!nonces.is_valid(other, ConnectionId(1), 1000), "byte {at}");
        }
    }
}
