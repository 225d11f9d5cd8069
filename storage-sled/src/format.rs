//! The format of a database directory: version, role and the encoding of keys.

use std::ops::Bound;
use std::path::Path;

use enjambre_core::storage::format::{check_version, foreign};
use enjambre_core::{Key, KeyRange, Role, Space, StorageError};
use sled::{Db, IVec};

use crate::error::explain;

/// The format version that this program writes.
pub(crate) const FORMAT: u64 = 1;
/// The tree that holds all spaces.
pub(crate) const DATA: &str = "data";
/// The tree of the format version and the role.
const META: &str = "enjambre";

/// Checks that the database belongs to Enjambre and has a supported format, or initialises a new one.
pub(crate) fn prepare(db: &Db, path: &Path, role: Role) -> Result<(), StorageError> {
    let failed = |error| explain(path, "open", error);
    let has_data =
        db.tree_names().iter().any(|name| *name != META && *name != "__sled__default") || !db.is_empty();
    let meta = db.open_tree(META).map_err(failed)?;
    let version = meta.get("format").map_err(failed)?;
    match version {
        Some(version) => {
            let found = version[..].try_into().map_or(u64::MAX, u64::from_be_bytes);
            check_version(&path.display().to_string(), found, FORMAT)?;
            let stored = meta.get("role").map_err(failed)?;
            if stored.as_deref() == Some(role.name().as_bytes()) {
                return Ok(());
            }
        }
        None if !has_data => {
            let mut batch = sled::Batch::default();
            batch.insert("format", &FORMAT.to_be_bytes());
            batch.insert("role", role.name());
            meta.apply_batch(batch).map_err(failed)?;
            return db.flush().map(drop).map_err(failed);
        }
        None => {}
    }
    Err(foreign(&path.display().to_string(), role, None))
}

/// The byte after the name of a space. No name contains it, so no space is a prefix of another.
const SEPARATOR: u8 = 0;

/// Returns the tree key of an entry.
pub(crate) fn encode(space: Space, key: &[u8]) -> Vec<u8> {
    let name = space.name().as_bytes();
    let mut bytes = Vec::with_capacity(name.len() + 1 + key.len());
    bytes.extend_from_slice(name);
    bytes.push(SEPARATOR);
    bytes.extend_from_slice(key);
    bytes
}

/// Returns the range of tree keys for a range of a space.
pub(crate) fn encode_range(space: Space, range: &KeyRange) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let start = match &range.start {
        Bound::Unbounded => Bound::Included(encode(space, b"")),
        bound => bound.as_ref().map(|key| encode(space, key)),
    };
    let end = match &range.end {
        bound @ (Bound::Included(_) | Bound::Excluded(_)) => bound.as_ref().map(|key| encode(space, key)),
        Bound::Unbounded => {
            let mut end = encode(space, b"");
            end.pop();
            end.push(SEPARATOR + 1);
            Bound::Excluded(end)
        }
    };
    (start, end)
}

/// Returns the key within its space, or an error if the tree contains a key that was never written.
pub(crate) fn decode(space: Space, key: &IVec, path: &Path) -> Result<Key, StorageError> {
    key.get(space.name().len() + 1..)
        .and_then(|key| Key::new(key.to_vec()).ok())
        .ok_or_else(|| StorageError::corrupt(format!("{} contains an invalid key", path.display())))
}
