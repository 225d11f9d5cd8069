//! The format version that a database contains.

use std::cmp::Ordering;

use super::error::{Source, StorageError};
use super::value::Role;

/// Checks the format version of a database against the only version that this program reads and writes. `database` names the
/// database in the error.
///
/// # Errors
/// [`StorageError::NewerFormat`] if `found` is newer, [`StorageError::Corrupt`] if the version never existed.
pub fn check_version(database: &str, found: u64, supported: u64) -> Result<(), StorageError> {
    match found.cmp(&supported) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => {
            Err(StorageError::NewerFormat { database: database.to_owned(), found, supported })
        }
        Ordering::Less => {
            let what = format!("{database} has format version {found}, which does not exist");
            Err(StorageError::corrupt(what))
        }
    }
}

/// The error for a database that another program wrote, or this program for another role. `database` names it.
/// `source` is the error of the engine, if it detected this.
pub fn foreign(database: &str, role: Role, source: Option<Source>) -> StorageError {
    let role = role.name();
    let what =
        format!("{database} is a database, but not an Enjambre database for {role}; choose another path");
    StorageError::Corrupt { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_supported_version_is_accepted() {
        assert!(check_version("db", 2, 2).is_ok());
        assert!(matches!(check_version("db", 1, 2), Err(StorageError::Corrupt { .. })));
        let newer = check_version("db", 3, 2);
        assert!(matches!(newer, Err(StorageError::NewerFormat { found: 3, supported: 2, .. })));
    }
}
