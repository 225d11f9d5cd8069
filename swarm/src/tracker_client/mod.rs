//! The client side of the tracker protocol.
//!
//! [`client::TrackerClient`] calls one tracker. [`trackers::Trackers`] queries all configured trackers, with failover between
//! those of one catalogue. [`presence::Presence`] keeps a session open in every catalogue.

pub mod client;
pub mod error;
pub mod listing;
pub mod offers;
pub mod presence;
pub mod trackers;
