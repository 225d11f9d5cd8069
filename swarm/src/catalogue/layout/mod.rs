//! The layout of the catalogue in a storage: spaces, keys and records.
//!
//! Numbers in keys are big-endian, ids are their 32 bytes. A name has no control characters, so the byte 0 terminates it
//! and keys sort by the bytes of the name. Versions are stored inverted (`!version`), so that the newest comes first. Each
//! file and each peer has a number of 6 bytes that is never reused. This keeps claims, the most frequent entries, small
//! and adjacent. A record is a CBOR map (RFC 8949) with short text keys; readers ignore unknown entries.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | `meta` | `format` | CBOR map: `v` the format version, `what` = `"catalogue"` |
//! | `meta` | `catalogue` | the catalogue id, 16 random bytes |
//! | `meta` | `stamp` | u64: time of the last write of renewals in ms since 1970; during a grace period, that of the period |
//! | `meta` | `time` | [`TimeRecord`](super::gaps::TimeRecord): the time of the last flush, and the gaps |
//! | `meta` | `numbers` | u64: the first number for files and peers that no tracker has allocated |
//! | `meta` | `swept`, `expired` | u64: time of the last start of a peer sweep, or of a file sweep, in ms since 1970 |
//! | `meta` | `reserved` | [`ReservedRecord`]: bytes and number of all pins |
//! | `meta` | `revocations` | u64: the version of the revocation list |
//! | `versions` | name, 0, u64 `!version` | [`VersionRecord`] |
//! | `files` | file id | [`FileEntry`]: the latest publication of the file |
//! | `file_names` | file id, name, 0, u64 `!version` | one byte 0: the file is this version |
//! | `providers` | number of the file, number of the peer | [`Claim`] |
//! | `offers` | number of the peer, number of the file | 6 bytes with the start time of the session, then [`Claim`] |
//! | `cleared` | number of the peer | 8 random bytes, replaced whenever claims of the peer are deleted |
//! | `peers` | peer id | number of the peer |
//! | `leases` | number of the peer | [`LeaseRecord`] |
//! | `sessions` | session id, 16 bytes | number of the peer |
//! | `pins` | peer id, file id | [`PinRecord`] |
//! | `pinned` | file id | [`ReservedRecord`]: bytes of the replica, which the pins of the file share, and their number |
//! | `pinners` | peer id | [`ReservedRecord`]: bytes and number of the pins of the peer |
//! | `authority` | `key` | the secret of the swarm's authority, 32 bytes of an Ed25519 seed |
//! | `invitations` | hash of the secret, 32 bytes | [`InvitationRecord`] |
//! | `members` | peer id | [`MemberRecord`] |
//! | `revoked` | peer id | u64: the version of the revocation; deleted when no membership of the peer can be valid |
//! | `reservations` | name | [`ReservationRecord`] |

mod claim;
mod codec;
mod keys;
mod records;
mod spaces;
#[cfg(test)]
mod tests;

pub use claim::Claim;
pub use codec::{MARK, MAX_NUMBER, damaged, decode, encode, number, read_number};
pub use keys::*;
pub use records::*;
pub use spaces::*;
