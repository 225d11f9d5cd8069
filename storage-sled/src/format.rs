//! The format of a database directory: version, role and the encoding of keys.

use std::ops::Bound;
use std::path::Path;

use enjambre_core::storage::format::check_version;
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
    let purpose = purpose(role);
    let has_data =
        db.tree_names().iter().any(|name| *name != META && *name != "__sled__default") || !db.is_empty();
    let meta = db.open_tree(META).map_err(failed)?;
    let version = meta.get("format").map_err(failed)?;
    match version {
        Some(version) => {
            let found = version[..].try_into().map_or(u64::MAX, u64::from_be_bytes);
            check_version(&path.display().to_string(), found, FORMAT)?;
            let stored = meta.get("role").map_err(failed)?;
            if stored.as_deref() == Some(purpose.as_bytes()) {
                return Ok(());
            }
        }
        None if !has_data => {
            let mut batch = sled::Batch::default();
            batch.insert("format", &FORMAT.to_be_bytes());
            batch.insert("role", purpose);
            meta.apply_batch(batch).map_err(failed)?;
            return db.flush().map(drop).map_err(failed);
        }
        None => {}
    }
    Err(foreign(path, role, None))
}

/// Returns the error for a database that does not belong to Enjambre, or to the other role.
pub(crate) fn foreign(path: &Path, role: Role, source: Option<sled::Error>) -> StorageError {
    let what = format!(
        "{} is a database, but not an Enjambre database for {}; choose another path",
        path.display(),
        purpose(role)
    );
    StorageError::Corrupt { what, source: source.map(Into::into) }
}

const fn purpose(role: Role) -> &'static str {
    match role {
        Role::Records => "records",
        Role::Content => "content",
    }
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
        Bound::Included(key) => Bound::Included(encode(space, key)),
        Bound::Excluded(key) => Bound::Excluded(encode(space, key)),
        Bound::Unbounded => Bound::Included(encode(space, b"")),
    };
    let end = match &range.end {
        Bound::Included(key) => Bound::Included(encode(space, key)),
        Bound::Excluded(key) => Bound::Excluded(encode(space, key)),
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
