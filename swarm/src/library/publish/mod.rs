//! Publishing: hashes a file or directory of the user on all cores, reads it once and links it.
//!
//! Files that the library already links are not read again while their fingerprints are unchanged. With
//! [`PublishOptions::store`] a second pass copies the content into the library, where its place depends on
//! the hash. A directory becomes a collection. Trackers learn of published names from the outbox of the
//! library.

mod hash;
mod import;
mod options;
mod register;
mod scan;

pub use options::{PublishError, PublishOptions, PublishProgress, Published};

#[cfg(test)]
pub(super) use register::NewPublished;

#[cfg(test)]
mod tests;
