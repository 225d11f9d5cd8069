//! Getting files from other peers: which piece to ask of whom, the conversations, and what becomes of the pieces.
//!
//! [`schedule`] and [`window`] decide and touch no socket, clock or random source of its own. [`source`] asks a provider,
//! `transfer` drives one file from start to end, [`downloader`] shares transfers among those who wait for them,
//! [`directory`] gets the members of a collection, `small` its small files many at a time, and [`get`] does all of it.
//! `hold` says how long they wait where the library cannot go on, as on a full disk.

pub mod choice;
pub mod directory;
pub mod downloader;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod get;
mod hold;
pub mod pace;
pub mod progress;
pub mod schedule;
#[cfg(test)]
mod simulation;
mod small;
pub mod source;
mod transfer;
pub mod wanted;
pub mod window;

use std::time::Duration;

use crate::library::error::LibraryError;

/// Why a download did not complete. What it has is kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// For as long as patience lasted nobody could be found who has what is missing.
    #[error("nobody could be reached for {} s who has what is missing{}", patience.as_secs(), because(reason.as_deref()))]
    Nobody {
        /// How long it waited.
        patience: Duration,
        /// The last thing that went wrong.
        reason: Option<String>,
    },
    /// It was stopped.
    #[error("the download was stopped; what it has is kept")]
    Cancelled,
    /// The library cannot keep what comes.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" (last: {reason})"))
}

#[cfg(test)]
mod small_tests;
#[cfg(test)]
mod tests;
