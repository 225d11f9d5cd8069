//! The program `enjambre` as a library, for programs with additional storage backends or transports.
//!
//! Such a program consists of a name, a factory for each plug-in, and [`App::main`]. It has the complete command line
//! and configuration of `enjambre`.
//!
//! ```no_run
//! use std::path::PathBuf;
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use enjambre::App;
//! use enjambre_core::storage::Role;
//! use enjambre_core::storage::location::Place;
//! use enjambre_core::storage::memory::Memory;
//!
//! /// The table `[storage.mine]` of the configuration.
//! #[derive(Default, serde::Deserialize, serde::Serialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Settings {
//!     path: Option<PathBuf>,
//! }
//!
//! fn main() -> ExitCode {
//!     let mut app = App::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
//!     app.register_storage("mine", |settings: Settings, place: Place, role: Role| async move {
//!         let path = place.database(settings.path.as_deref(), "mine", role);
//!         println!("path of the {role:?} database: {}", path.display());
//!         Ok(Arc::new(Memory::new()) as _)
//!     });
//!     app.main()
//! }
//! ```
//!
//! `docs/WRITING-A-BACKEND.md` is a tutorial that ends with a backend that passes the conformance test suite.
//! `examples/redb` is a complete backend. See [`App::register_transport`] for transports.

mod access;
mod app;
mod cli;
pub mod config;
mod control;
mod data_dir;
mod display;
mod find;
#[cfg(test)]
mod fuzz;
#[cfg(feature = "http")]
mod http;
mod known_database;
mod listeners;
mod log_lines;
mod logging;
mod node_commands;
mod node_key;
#[cfg(feature = "otlp")]
mod otlp;
mod peer;
pub mod registry;
mod shutdown;
mod spool;
mod tracker;

pub use app::App;

/// Runs a blocking function on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, enjambre_control::Failure> + Send + 'static,
) -> Result<T, enjambre_control::Failure> {
    match enjambre_core::runtime::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(enjambre_control::Failure::failed(format!("internal error: {error}"))),
    }
}
