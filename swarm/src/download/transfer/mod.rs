//! The transfer of one file, from the first request to the last written piece.
//!
//! A transfer is one task that owns the schedule and waits for the next event: a reply, a written batch of pieces, a list
//! of providers, or a timer. Network reads, hashing and writes overlap. The bytes that are requested and not yet written
//! are bounded by the budget that all transfers of a peer share. Only content that was verified against the file id is
//! written.
//!
//! ```text
//! provider:  idle -> connecting -> active -> idle     (backed off: unreachable, busy or refused)
//!                                     \----> banned   (sent invalid data)
//! piece:     requested -> received -> verified and written     (after a failure: requested from another provider)
//! ```

mod connect;
mod event;
mod pieces;
mod provider_table;
mod providers;
mod run;
mod state;
mod view;

pub(super) use run::run;
