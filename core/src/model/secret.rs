//! The secret of an invitation, and the hash that trackers store.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The derivation context of the hash, which separates it from all other BLAKE3 hashes.
const CONTEXT: &str = "enjambre invitation secret 1";

/// The 128 random bits that authorize a peer to join. No formatter reveals them.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(#[serde(with = "super::bytes")] pub [u8; 16]);

impl Secret {
    /// Generates a secret from the random source of the thread.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// The hash that a tracker stores to recognise the secret: BLAKE3 with its own derivation context.
    pub fn hash(&self) -> SecretHash {
        SecretHash(blake3::derive_key(CONTEXT, &self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The hash of a secret, which identifies an invitation and does not authorize a peer to join.
/// [`Display`](fmt::Display) prints all hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHash(#[serde(with = "super::bytes")] pub [u8; 32]);

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({})", hex::encode(&self.0[..4]))
    }
}
