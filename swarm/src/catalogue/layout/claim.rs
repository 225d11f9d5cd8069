//! Claims of peers to have a file.

use bytes::Bytes;

use enjambre_core::{StorageError, UnixMillis};

use super::codec::{damaged, from_six_bytes, six_bytes};
use super::spaces::{OFFERS, PROVIDERS};

/// A provider record, which states that a peer has a file: a byte that is 1 if the peer has the whole file and 0
/// otherwise, then the size without leading zero bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The size of the file in bytes, as the peer states.
    pub size: u64,
    /// Whether the peer has the whole file.
    pub complete: bool,
}

impl Claim {
    /// Appends the value in `providers`.
    pub(crate) fn write(self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self.complete));
        let size = self.size.to_be_bytes();
        bytes.extend_from_slice(&size[self.size.leading_zeros() as usize / 8..]);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (flags, size) = bytes.split_first()?;
        if *flags > 1 || size.len() > 8 {
            return None;
        }
        let size = size.iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
        Some(Self { size, complete: *flags == 1 })
    }

    /// Encodes the value in `providers`.
    pub fn encode(self) -> Bytes {
        let mut bytes = Vec::with_capacity(9);
        self.write(&mut bytes);
        bytes.into()
    }

    /// Decodes a value of `providers`.
    pub fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        Self::read(bytes).ok_or_else(|| damaged(PROVIDERS, bytes))
    }

    /// Encodes the value in `offers`; `began` is the start time of the session that made the claim.
    pub fn encode_offer(self, began: UnixMillis) -> Bytes {
        let mut bytes = Vec::with_capacity(15);
        self.write_offer(began, &mut bytes);
        bytes.into()
    }

    /// Appends the value in `offers`.
    pub(crate) fn write_offer(self, began: UnixMillis, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&six_bytes(began.get()));
        self.write(bytes);
    }

    /// Decodes a value of `offers` into the claim and the start time of the session that made it.
    pub fn decode_offer(bytes: &[u8]) -> Result<(Self, UnixMillis), StorageError> {
        let read = || {
            let (began, claim) = bytes.split_first_chunk::<6>()?;
            Some((Self::read(claim)?, UnixMillis(from_six_bytes(began))))
        };
        read().ok_or_else(|| damaged(OFFERS, bytes))
    }
}
