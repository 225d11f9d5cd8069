//! The domain of Enjambre: catalogue, tracker, library, downloads and membership.
//!
//! Everything here is written once on top of [`enjambre_core::storage::Storage`] and
//! [`enjambre_core::transport::Transport`]. This crate names no database and no socket crate; applications supply both.

pub mod catalogue;
pub mod change;
pub mod download;
#[cfg(test)]
mod fuzz;
pub mod library;
pub mod membership;
pub mod peer;
pub mod rate_limit;
pub mod record_copy;
pub mod seeder;
pub mod tracker;
pub mod tracker_client;
