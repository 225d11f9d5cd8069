//! Detection of a missing database.
//!
//! A node that opens an empty database in place of its own, because the backend was changed or files are missing, would
//! lose its catalogue or library without notice, and an invite-only swarm would get another authority. So a file in the
//! data directory states that the node has a database, and an empty one is refused then.

use std::path::Path;

use enjambre_control::{Failure, ResultContext};
use enjambre_core::Storage;

use crate::access::write_file;

const FILE: &str = "initialized";

/// Rejects an empty database, for which `format` is `None`, if the node had one before.
pub(crate) async fn check(data_dir: &Path, format: Option<u64>, backend: &str) -> Result<(), Failure> {
    if format.is_some() || !tokio::fs::try_exists(data_dir.join(FILE)).await? {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the {backend} storage is empty, but the node of {} had a database before; restore it, or the previous section \
         [storage], or start the node once with --init to begin with an empty database",
        data_dir.display()
    )))
}

/// Records that the node has a database.
pub(crate) async fn record(data_dir: &Path, storage: &dyn Storage) -> Result<(), Failure> {
    if tokio::fs::try_exists(data_dir.join(FILE)).await? {
        return Ok(());
    }
    // After a power cut, the database must not be missing because it was written later than the file.
    storage.sync().await?;
    let folder = data_dir.to_owned();
    let written = crate::blocking(move || Ok(write_file(&folder, FILE, b"")?)).await;
    written.context(format!("cannot write {}", data_dir.join(FILE).display()))
}

/// Accepts an empty database at the next start.
pub(crate) async fn forget(data_dir: &Path) -> Result<(), Failure> {
    match tokio::fs::remove_file(data_dir.join(FILE)).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
