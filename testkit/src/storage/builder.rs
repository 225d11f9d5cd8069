//! The interface between a backend and the suite.

use std::io::Write;
use std::sync::Arc;

use enjambre_core::{Storage, StorageError};

use super::case::Failure;

/// Opens storages for the suite.
pub trait Builder: Sync {
    /// The location of the data of a storage, for example a temporary directory. Dropping it deletes the data.
    type Place: Send + Sync;

    /// Creates an empty place.
    fn place(&self) -> Self::Place;

    /// Opens the storage at a place, which may contain the data of earlier openings.
    fn open(
        &self,
        place: &Self::Place,
    ) -> impl Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send;

    /// Returns whether several nodes may open this place at the same time. Otherwise a second opening fails with
    /// [`StorageError::Locked`], or closes the first storage.
    fn is_shared(&self, _place: &Self::Place) -> bool {
        false
    }

    /// Called on a separate thread when a call blocks the runtime for a minute. Such a call cannot be cancelled, so this function
    /// ends the process.
    fn blocked(failure: &Failure) -> ! {
        // Written directly, since the test harness would capture `eprintln!`.
        let _ = writeln!(
            std::io::stderr(),
            "{failure}\nthe process ends, because a blocking call cannot be cancelled"
        );
        std::process::exit(101)
    }
}
