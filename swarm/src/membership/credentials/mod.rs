//! Credentials of an invite-only swarm.
//!
//! The [`authority::Authority`] of a swarm signs a [`membership`](enjambre_core::model::membership) that is valid for a day
//! for each peer that joins with an [`invitation::Invitation`], and the pages of the revocation list
//! ([`revocations::Revocations`]). The public key of the authority suffices to verify both offline. This module has no clock:
//! the caller passes the time.

pub mod authority;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod invitation;
pub mod revocations;
