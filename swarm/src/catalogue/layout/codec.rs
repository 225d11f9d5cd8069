//! Encoding of records and numbers.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use enjambre_core::model::cbor;
use enjambre_core::{Space, StorageError};

/// The value of an entry that carries no data beside its key.
pub const MARK: Bytes = Bytes::from_static(&[0]);

/// The largest number of a file or peer.
pub const MAX_NUMBER: u64 = (1 << 48) - 1;

/// Encodes a number as 8 bytes.
pub fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

/// Decodes a value of [`number`].
pub fn read_number(space: Space, bytes: &[u8]) -> Result<u64, StorageError> {
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| damaged(space, bytes))?))
}

/// Encodes a record as CBOR.
pub fn encode(record: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    ciborium::into_writer(record, &mut bytes).expect("writing plain values to memory does not fail");
    bytes.into()
}

/// Decodes a record of this space.
pub fn decode<T: DeserializeOwned>(space: Space, bytes: &[u8]) -> Result<T, StorageError> {
    let mut rest = bytes;
    let record = cbor::decode(&mut rest, 16).map_err(|error| {
        let what = format!("a record in the space {} cannot be read", space.name());
        StorageError::Corrupt { what, source: Some(error.to_string().into()) }
    })?;
    if rest.is_empty() { Ok(record) } else { Err(damaged(space, bytes)) }
}

/// The error for an entry that this program would not have written.
pub fn damaged(space: Space, bytes: &[u8]) -> StorageError {
    let shown = bytes[..bytes.len().min(40)].escape_ascii();
    StorageError::corrupt(format!("malformed entry {shown} in the space {}", space.name()))
}

/// The lower 6 bytes of a number; larger numbers become the largest.
pub(super) fn six_bytes(number: u64) -> [u8; 6] {
    let [_, _, bytes @ ..] = number.min(MAX_NUMBER).to_be_bytes();
    bytes
}

pub(super) fn from_six_bytes(bytes: &[u8; 6]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
