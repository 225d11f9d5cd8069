//! The program `enjambre`, as a library for those who add a storage backend or a transport of their own.
//!
//! ```no_run
//! let mut app = enjambre::App::stock();
//! app.register_storage("mine", |_: enjambre::registry::NoSettings, _place| async {
//!     Ok(std::sync::Arc::new(enjambre_core::storage::memory::Memory::new()) as _)
//! });
//! app.main();
//! ```

mod app;
mod cli;
pub mod config;
pub mod control;
pub mod data_dir;
pub mod failure;
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
