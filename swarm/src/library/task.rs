//! Tasks of the library: blocking work, and results of spawned tasks.

use tokio::task::JoinHandle;

use super::error::{LibraryError, Result};
use enjambre_core::runtime;

/// Runs blocking work outside of the async workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    finished(runtime::spawn_blocking(work)).await
}

/// Waits for a task and resumes its panic if it has one.
pub(crate) async fn finished<T>(task: JoinHandle<Result<T>>) -> Result<T> {
    match task.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(LibraryError::Closed),
        },
    }
}
