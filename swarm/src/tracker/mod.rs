//! The tracker: the service that answers requests from the [`crate::catalogue`].
//!
//! [`handler::TrackerHandler`] passes requests to [`service::TrackerService`], with [`lookups`] from memory where
//! possible, or to the seeder of the pinned files in [`replicas::ReplicaStore`]. In an invite-only swarm
//! [`gate::TrackerGate`] precedes them, and [`admission::Admission`] decides which peers it admits. The client side is
//! [`crate::tracker_client`].

pub mod admission;
mod announced_endpoints;
mod catalogue_error;
pub(crate) mod claim_list;
mod encoded_peers;
pub mod gate;
pub mod handler;
pub mod lookup_cache;
pub mod lookups;
pub mod metrics;
pub mod nonce;
mod periodic;
pub mod pin_store;
pub mod replicas;
pub mod service;
pub mod settings;
mod ticker;

#[cfg(test)]
pub(crate) mod tests;
