//! Detection of a missing or outdated database.
//!
//! A node that opens an empty database in place of its own, because the backend was changed or files are missing, would
//! lose its catalogue or library without notice, and an invite-only swarm would get another authority. A node that opens
//! its old database after the data was copied to another backend would continue an outdated state. So a file in the data
//! directory names the backend that contains the data of the node, and other databases are refused then.

use std::io::ErrorKind;
use std::path::Path;

use enjambre_control::{Failure, ResultContext};
use enjambre_core::Storage;

use crate::access::write_file;

const FILE: &str = "initialized";

/// Returns the backend that contains the data of the node, or `None` if it may open any database.
async fn recorded(data_dir: &Path) -> Result<Option<String>, Failure> {
    match tokio::fs::read_to_string(data_dir.join(FILE)).await {
        Ok(backend) => Ok(Some(backend)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(Failure::from(error).context(format!("cannot read {}", data_dir.join(FILE).display())))
        }
    }
}

/// Returns whether the node had a database that keeps its data.
pub(crate) async fn exists(data_dir: &Path) -> Result<bool, Failure> {
    Ok(recorded(data_dir).await?.is_some())
}

/// Rejects an empty database, for which `format` is `None`, if the node had one before, and one of another backend than the
/// one that contains its data. With `init` any database is accepted.
pub(crate) async fn check(
    data_dir: &Path,
    format: Option<u64>,
    backend: &str,
    init: bool,
) -> Result<(), Failure> {
    if init {
        return Ok(());
    }
    let Some(known) = recorded(data_dir).await? else { return Ok(()) };
    let folder = data_dir.display();
    if format.is_none() {
        return Err(Failure::failed(format!(
            "the {backend} storage is empty, but the node of {folder} had a database before; restore it, or the previous \
             section [storage], or start the node once with --init to begin with an empty database"
        )));
    }
    if known != backend {
        return Err(Failure::failed(format!(
            "the {backend} storage is outdated, because the node of {folder} uses the {known} storage now; set storage.backend \
             = \"{known}\", or start the node once with --init to return to the outdated data, which deletes content that was \
             added since"
        )));
    }
    Ok(())
}

/// Records that this database contains the data of the node.
pub(crate) async fn record(data_dir: &Path, storage: &dyn Storage, backend: &str) -> Result<(), Failure> {
    if recorded(data_dir).await?.as_deref() == Some(backend) {
        return Ok(());
    }
    // After a power cut, the database must not be missing because it was written later than the file.
    storage.sync().await?;
    let (folder, content) = (data_dir.to_owned(), backend.to_owned());
    let written = crate::blocking(move || Ok(write_file(&folder, FILE, content.as_bytes())?)).await;
    written.context(format!("cannot write {}", data_dir.join(FILE).display()))
}
