//! The tracker: the service that answers, and the peer's side that asks.
//!
//! [`service::TrackerService`] gives the catalogue's answers to requests. [`client::TrackerClient`] asks one
//! tracker, [`trackers::Trackers`] asks all that are configured and fails over among those of one catalogue, and
//! [`presence::Presence`] keeps a peer alive in every catalogue. What any of it means is in
//! [`crate::catalogue`]. Where a swarm is by invitation, [`gate::Gate`] stands in front of the service and
//! [`admission::Admission`] decides who comes in.

pub mod admission;
pub mod client;
pub mod error;
pub mod gate;
pub mod listing;
pub mod nonce;
pub mod offers;
mod pace;
pub mod pin;
pub mod presence;
pub mod service;
pub mod settings;
pub mod trackers;

#[cfg(test)]
mod invited_tests;
#[cfg(test)]
mod presence_tests;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod several_tests;
#[cfg(test)]
mod testing;
