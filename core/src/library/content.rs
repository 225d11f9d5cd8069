//! .

use std::path::PathBuf;
use std::sync::Arc;

use crate::storage::Storage;

/// Where the library keeps content that is its own.
#[derive(Debug, Clone)]
pub enum ContentStore {
    /// In a storage opened for [`crate::storage::Role::Content`].
    Database(Arc<dyn Storage>),
    /// In plain files `DIR/<first 2 digits of the id>/<id>`.
    Files(PathBuf),
}
