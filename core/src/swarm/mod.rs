//! Values of a swarm that admits by invitation only.
//!
//! An [`authority::Authority`], one for each catalogue whichever tracker speaks for it, signs a
//! [`membership::SignedMembership`] for each peer that came with an [`invitation::Invitation`], for a day, and the
//! [`revocations::Revocations`] of those that were thrown out, page by page. Whoever knows the authority's key can check both without
//! asking anybody. There is no clock in here: whatever depends on the time is told it. Who is let in by them is decided in
//! [`crate::admission`].

pub mod authority;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod invitation;
pub mod membership;
pub mod revocations;
