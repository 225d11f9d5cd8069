//! The Ed25519 key pair (RFC 8032) that a node generates at its first start, and the id derived from it.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::id::PeerId;

/// The public key of a node, 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey(#[serde(with = "super::bytes")] [u8; 32]);

/// The text is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid public key {text:?}: expected 64 hexadecimal digits")]
pub struct ParsePublicKeyError {
    /// The text, truncated to 80 characters.
    pub text: String,
}

impl PublicKey {
    /// The key with these bytes. They are not validated: an invalid key verifies no signature.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of the node with this key: the BLAKE3 hash of its bytes.
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_bytes(*blake3::hash(&self.0).as_bytes())
    }

    /// Returns whether `signature` is a signature of `message` by this key. A weak key verifies no signature.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
        })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = ParsePublicKeyError;

    fn from_str(text: &str) -> Result<Self, ParsePublicKeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| ParsePublicKeyError { text: text.chars().take(80).collect() })?;
        Ok(Self(bytes))
    }
}

/// An Ed25519 signature, 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(#[serde(with = "super::bytes")] [u8; 64]);

/// The key pair of a node. No formatter reveals the secret.
#[derive(Clone)]
pub struct KeyPair(SigningKey);

impl KeyPair {
    /// Generates a key pair from the random source of the thread.
    pub fn generate() -> Self {
        Self::from_secret(&rand::random())
    }

    /// The key pair with a secret from [`KeyPair::secret`].
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The secret key.
    pub fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The id of the node with this key pair.
    pub fn peer_id(&self) -> PeerId {
        self.public().peer_id()
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl Signature {
    /// The signature with these bytes.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The 64 bytes of the signature.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.peer_id().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signed_message_verifies_and_secret_is_hidden() {
        let pair = KeyPair::generate();
        let signature = pair.sign(b"message");
        assert!(pair.public().verifies(b"message", &signature));
        assert!(!pair.public().verifies(b"massage", &signature));
        assert!(!KeyPair::generate().public().verifies(b"message", &signature));
        assert_eq!(KeyPair::from_secret(&pair.secret()).peer_id(), pair.peer_id());
        assert!(!format!("{pair:?}").contains(&hex::encode(pair.secret())));
    }
}
