//! What a database folder looks like: its name, its format version, and the keys of a space.

use std::ops::Bound;
use std::path::Path;

use enjambre_core::storage::Role;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Key, KeyRange, Space};
use sled::{Db, IVec};

use crate::error::explain;

/// The version of the keys and trees that this program writes.
pub(crate) const FORMAT: u64 = 1;
/// The tree that holds all spaces.
pub(crate) const DATA: &str = "data";
/// The tree of the format version and the role.
const META: &str = "enjambre";

/// Checks that the database is ours and of a format that we know, or makes a new one ours.
pub(crate) fn prepare(db: &Db, path: &Path, role: Role) -> Result<(), StorageError> {
    let failed = |error| explain(path, "open", error);
    let purpose: &[u8] = match role {
        Role::Records => b"records",
        Role::Content => b"content",
    };
    let others =
        db.tree_names().iter().any(|name| *name != META && *name != "__sled__default") || !db.is_empty();
    let meta = db.open_tree(META).map_err(failed)?;
    let version = meta.get("format").map_err(failed)?;
    match version {
        Some(version) => {
            let found = version[..].try_into().map_or(u64::MAX, u64::from_be_bytes);
            if found > FORMAT {
                return Err(StorageError::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT });
            }
            let stored = meta.get("role").map_err(failed)?;
            if stored.as_deref() == Some(purpose) {
                return Ok(());
            }
        }
        None if !others => {
            let mut batch = sled::Batch::default();
            batch.insert("format", &FORMAT.to_be_bytes());
            batch.insert("role", purpose);
            meta.apply_batch(batch).map_err(failed)?;
            return db.flush().map(drop).map_err(failed);
        }
        None => {}
    }
    Err(StorageError::corrupt(format!(
        "{} is a database, but not one of Enjambre's {}; choose another path",
        path.display(),
        purpose.escape_ascii()
    )))
}

/// The first byte behind the name of a space. No name has it, so no space begins within another.
const SEPARATOR: u8 = 0;

/// The key of an entry in the tree.
pub(crate) fn encode(space: Space, key: &[u8]) -> Vec<u8> {
    let name = space.name().as_bytes();
    let mut bytes = Vec::with_capacity(name.len() + 1 + key.len());
    bytes.extend_from_slice(name);
    bytes.push(SEPARATOR);
    bytes.extend_from_slice(key);
    bytes
}

/// The range in the tree of a range in a space.
pub(crate) fn encode_range(space: Space, range: &KeyRange) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let start = match &range.start {
        Bound::Included(key) => Bound::Included(encode(space, key)),
        Bound::Excluded(key) => Bound::Excluded(encode(space, key)),
        Bound::Unbounded => Bound::Included(encode(space, b"")),
    };
    let end = match &range.end {
        Bound::Included(key) => Bound::Included(encode(space, key)),
        Bound::Excluded(key) => Bound::Excluded(encode(space, key)),
        Bound::Unbounded => {
            let mut behind = encode(space, b"");
            behind.pop();
            behind.push(SEPARATOR + 1);
            Bound::Excluded(behind)
        }
    };
    (start, end)
}

/// The key within its space; an error where the tree holds what was never written.
pub(crate) fn decode(space: Space, key: &IVec, path: &Path) -> Result<Key, StorageError> {
    key.get(space.name().len() + 1..)
        .and_then(|key| Key::new(key.to_vec()).ok())
        .ok_or_else(|| StorageError::corrupt(format!("{} has an impossible key", path.display())))
}
