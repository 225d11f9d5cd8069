//! What [`super::Queued`] stores in the database for itself: the identity of the database, and the claims of its writers.
//!
//! A claim grants the right to write. Every transaction requires the last value of its writer's claim and stores the next one,
//! so a writer that lost its claim cannot write any more, and the claim shows whether a transaction with an unknown outcome was
//! applied. Only a writer that knows the identity of the database can make a claim, so a server that was emptied or replaced is
//! detected by the next transaction.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::RngExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::cbor;
use crate::model::time::UnixMillis;
use crate::runtime;
use crate::storage::error::StorageError;
use crate::storage::format::{check_version, foreign};
use crate::storage::value::{Batch, Key, Role, Space};

/// The space of the identity and the claims.
pub(super) const META: Space = Space::new("enjambre_storage");
/// The version of the format of this space.
pub(super) const FORMAT: u64 = 1;

/// The time after which the claims of writers that did not close are removed.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// The key of the identity.
pub(super) fn identity_key() -> Key {
    Key::new("identity").expect("the length is valid")
}

/// The prefix of the keys of the claims of several writers.
pub(super) const WRITERS: &[u8] = b"writer/";

/// What a database is.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u64,
    role: String,
    id: String,
}

/// Returns the identity of a new database, encoded.
pub(super) fn new_identity(role: Role) -> Bytes {
    encode(&Identity { format: FORMAT, role: role.name().to_owned(), id: random_id() })
}

/// Checks the identity of the database `name`.
pub(super) fn check_identity(value: &[u8], name: &str, role: Role) -> Result<(), StorageError> {
    let identity: Identity =
        decode(value).ok_or_else(|| StorageError::corrupt(format!("the identity of {name} is damaged")))?;
    check_version(name, identity.format, FORMAT)?;
    if identity.role == role.name() { Ok(()) } else { Err(foreign(name, role, None)) }
}

/// The value of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ClaimValue {
    /// The data directory of an owner; empty for one of several writers.
    folder: String,
    session: String,
    /// The number of transactions.
    number: u64,
    /// The time of the last transaction, by the clock of the writer.
    seen: UnixMillis,
}

/// Returns whether a claim of one of several writers was not used for [`RETENTION`]. A writer that still runs makes another one.
pub(super) fn is_expired(stored: &[u8]) -> bool {
    decode::<ClaimValue>(stored).is_none_or(|value| now().saturating_since(value.seen) > RETENTION)
}

/// The claim of a writer.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) key: Key,
    value: ClaimValue,
    /// The encoded value in the database, which the next transaction requires.
    pub(super) stored: Bytes,
}

impl Claim {
    /// A new claim: that of the only writer if `owner` is its data directory, or one of several.
    pub(super) fn new(owner: Option<&str>) -> Self {
        let session = random_id();
        let key = match owner {
            Some(_) => b"owner".to_vec(),
            None => [WRITERS, session.as_bytes()].concat(),
        };
        let folder = owner.unwrap_or_default().to_owned();
        let value = ClaimValue { folder, session, number: 0, seen: now() };
        let key = Key::new(key).expect("the length is valid");
        Self { key, stored: encode(&value), value }
    }

    /// The encoded value `steps` transactions later. Different steps from the same value have different results.
    pub(super) fn after(&self, steps: u64) -> Bytes {
        encode(&ClaimValue { number: self.value.number + steps, seen: now(), ..self.value.clone() })
    }

    /// Adopts a value of [`Claim::after`] that is stored in the database.
    pub(super) fn advance(&mut self, stored: Bytes) {
        if let Some(value) = decode(&stored) {
            self.value = value;
        }
        self.stored = stored;
    }

    /// Returns whether a stored value is one of this claim.
    pub(super) fn is_own(&self, stored: &[u8]) -> bool {
        decode::<ClaimValue>(stored).is_some_and(|value| value.session == self.value.session)
    }

    /// Returns whether a stored value is the current one of this claim or a later one, not one of a restored backup.
    pub(super) fn is_not_before(&self, stored: &[u8]) -> bool {
        decode::<ClaimValue>(stored)
            .is_some_and(|value| value.session == self.value.session && value.number >= self.value.number)
    }

    /// Returns whether a stored value is that of an owner with the same data directory.
    pub(super) fn is_of_same_folder(&self, stored: &[u8]) -> bool {
        decode::<ClaimValue>(stored).is_some_and(|value| value.folder == self.value.folder)
    }

    /// Adds the condition that the stored value is current.
    pub(super) fn require(&self, batch: &mut Batch) {
        batch.require(META, self.key.clone(), self.stored.clone());
    }
}

fn now() -> UnixMillis {
    UnixMillis::from_system(SystemTime::now())
}

/// Returns a random id of 32 hexadecimal digits.
pub(super) fn random_id() -> String {
    hex::encode(runtime::rng().random::<[u8; 16]>())
}

fn encode(value: &impl Serialize) -> Bytes {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("writing to memory succeeds");
    bytes.into()
}

fn decode<T: DeserializeOwned>(mut value: &[u8]) -> Option<T> {
    cbor::decode(&mut value, 4).ok().filter(|_| value.is_empty())
}
