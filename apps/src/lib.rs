//! The program `enjambre`, as a library for those who add a storage backend or a transport of their own.
//!
//! A program of one's own is a name, a factory for each plug-in, and [`App::main`]; it has the whole command line and
//! configuration of the stock one.
//!
//! ```no_run
//! use std::path::PathBuf;
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use enjambre::App;
//! use enjambre::registry::Place;
//! use enjambre_core::storage::memory::Memory;
//!
//! /// The table `[storage.mine]` of the configuration.
//! #[derive(Default, serde::Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Settings {
//!     path: Option<PathBuf>,
//! }
//!
//! fn main() -> ExitCode {
//!     let mut app = App::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
//!     app.register_storage("mine", |settings: Settings, place: Place| async move {
//!         let path = place.database(settings.path.as_deref(), "mine");
//!         println!("{:?} would lie at {}", place.role, path.display());
//!         Ok(Arc::new(Memory::new()) as _)
//!     });
//!     app.main()
//! }
//! ```
//!
//! `docs/WRITING-A-BACKEND.md` goes from an empty crate to a storage that passes the conformance kit; `examples/redb` is
//! one on a real engine. What the factory of a transport is given is in [`registry::Registry::register_transport`].

mod app;
mod cli;
pub mod config;
pub mod control;
pub mod data_dir;
pub mod failure;
#[cfg(test)]
mod fuzz;
pub mod listeners;
pub mod logging;
pub mod node_key;
pub mod peer;
pub mod registry;
pub mod scratch;
pub mod shutdown;
pub mod tracker;

pub use app::App;

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, failure::Failure> + Send + 'static,
) -> Result<T, failure::Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failure::Failure::failed(format!("an internal error: {error}"))),
    }
}
