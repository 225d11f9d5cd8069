//! The files of a peer: which files and pieces it has, and where their content is.
//!
//! The *index* is a [`enjambre_core::storage::Storage`] with records. The *content* is in another storage, in
//! plain files, or in linked files of the user. No batch spans index and content, so the order of writes
//! keeps them consistent: first the content, then its sync, then the bits that claim it. A removal writes a
//! durable tombstone, deletes the content, and then deletes the tombstone. The library never claims a byte
//! that it does not have.
//!
//! Layers, from the bottom: `layout` (records), [`content`] (the library's own store), `inner` (index, locks,
//! checkpoints), [`mod@file`] (one open file), `open_files` (opening and changing files), [`library`] (the public interface).
//! Networking and catalogues are unknown here.

mod checkpoint;
pub mod content;
pub mod content_copy;
mod content_files;
mod create;
pub mod describe;
pub mod entry;
pub mod error;
mod export;
pub mod file;
mod file_state;
#[cfg(test)]
pub(crate) mod fuzz;
mod inner;
mod layout;
#[expect(clippy::module_inception, reason = "the main type has a file of its own name")]
pub mod library;
mod linked;
mod load;
mod missing_content;
mod open_cache;
mod open_files;
pub mod output;
mod piece_writer;
pub mod publish;
mod recover;
mod relink;
mod remove;
mod retarget;
pub mod small;
mod state;
mod task;
mod unsynced;
mod verify;

pub use layout::{
    DOWNLOADS, DownloadRecord, DownloadState, FORMAT, SPACES, SWARM, download_key, read_download,
    read_revoked_key, revoked_key, revoked_keys, swarm_key,
};
pub use load::stored_format;
pub use missing_content::drop_content_claims;

#[cfg(test)]
mod tests;
