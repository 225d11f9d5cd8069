//! The peer's persistent memory: which files it has, which of their pieces, and where the bytes are.
//!
//! The *index* (a [`crate::storage::Storage`] of records) says what is there; the *content* lies in another storage,
//! in plain files, or in files of the user that are only linked. No batch spans the two, so the order of writes
//! is what keeps them true: content first, then its sync, then the bits that claim it; and for removal a durable
//! tombstone, then the content, then the tombstone. The library never claims a byte that it does not have.
//!
//! [`library::Library`] is the whole, [`file::LibraryFile`] one file in it. Networking and catalogues are not known here.

pub mod carry;
pub mod content;
mod content_files;
pub(crate) mod create;
pub mod describe;
pub mod entry;
pub mod error;
mod export;
pub mod file;
mod formats;
#[cfg(test)]
pub(crate) mod fuzz;
mod keep;
pub(crate) mod layout;
// `Library` is the main type, and a main type has a file of its own name.
#[expect(clippy::module_inception)]
pub mod library;
pub(crate) mod linked;
mod links;
mod open;
pub mod output;
pub(crate) mod publications;
mod recent;
mod recover;
mod remove;
pub mod settings;
mod shared;
pub mod small;
pub mod stamp;
mod whole;

pub use formats::stored_format;
pub use layout::{FORMAT, SPACES, SWARM, read_revoked_key, revoked_key, revoked_keys, swarm_key};

#[cfg(test)]
mod tests;
