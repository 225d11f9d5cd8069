//! Downloads: which piece to request from which provider, the requests, and the storage of received pieces.
//!
//! [`schedule`] and [`window`] make decisions and use no socket, no clock and no random source of their own. [`provider`]
//! sends requests to one provider, `transfer` downloads one file, and [`downloader`] shares a transfer among its waiters.
//! [`collection`] downloads the members of a collection and `small_files` its small files in batches; [`get`] combines
//! all of it. [`reader`] reads a file while it is downloaded. [`queue`] runs the downloads that users leave to the node. [`activity`]
//! and [`view`] describe running downloads. `context` holds what they share and retries library operations, for example
//! while the disk is full.

pub mod activity;
pub mod arrival_rate;
mod batch_provider;
pub mod collection;
mod context;
pub mod downloader;
pub mod error;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod get;
pub mod metrics;
pub mod provider;
mod provider_dialer;
pub mod queue;
pub mod reader;
pub mod request;
pub mod schedule;
pub mod selection;
pub mod settings;
#[cfg(test)]
mod simulation;
mod small_files;
#[cfg(test)]
mod small_files_tests;
#[cfg(test)]
mod tests;
mod transfer;
pub mod view;
mod wanted;
pub mod window;

pub use error::DownloadError;
