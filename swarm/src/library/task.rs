//! Tasks of the library: blocking work, and results of spawned tasks.

use tokio::task::JoinError;

use super::error::{LibraryError, Result};
use enjambre_core::runtime;

/// Runs blocking work outside of the async workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    finished(runtime::spawn_blocking(work)).await
}

/// Runs async work in a task, so that it completes even if the caller drops the future.
pub(crate) async fn in_task<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    finished(runtime::spawn(work)).await
}

/// Waits for a task and resumes its panic if it has one.
pub(crate) async fn finished<T>(
    task: impl Future<Output = std::result::Result<Result<T>, JoinError>>,
) -> Result<T> {
    match task.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(LibraryError::Closed),
        },
    }
}
