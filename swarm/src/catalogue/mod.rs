//! The catalogue of a tracker in a [`Storage`](enjambre_core::storage::Storage): names and their versions, files, the claims of
//! peers to have them, leases of peers, pins, and the members of an invite-only swarm.
//!
//! [`layout`] documents keys and records. Several trackers may work on one database at the same time: every update that
//! must not be lost is a conditional commit that is repeated with fresh values on a conflict, and nothing is cached for
//! longer than [`CatalogueRules::cache_ttl`]. This module has no clock: every call receives the time. A
//! [`changes::ChangeListener`] learns of each committed write, so that a caller can cache what it reads.

pub(crate) mod access;
mod announce;
// `Catalogue` is the main type, and a main type has a file of its own name.
#[expect(clippy::module_inception)]
mod catalogue;
pub mod changes;
mod claims;
mod damage;
pub mod describe;
pub mod error;
mod eviction;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod gaps;
pub mod layout;
pub mod leases;
pub mod list;
pub mod members;
pub mod names;
mod numbers;
pub mod online;
pub mod pattern;
mod peer_cache;
pub mod peers;
pub mod pins;
pub mod providers;
mod publish;
pub(crate) mod read_cache;
mod renewals;
pub mod revocations;
pub mod sweep;
#[cfg(test)]
pub(crate) mod tests;

pub use catalogue::{Catalogue, CatalogueRules, stored_format};
pub use sweep::Task;
