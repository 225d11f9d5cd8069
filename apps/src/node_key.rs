//! The key of a node, in the file `key` of its data folder: the 32 bytes of an Ed25519 secret.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use enjambre_core::model::identity::KeyPair;

use crate::failure::Failure;

const NAME: &str = "key";

/// Reads the key, or makes one at the first start. Whoever calls this holds the lock of the data folder. Blocks.
pub fn load_or_create(data_dir: &Path) -> Result<KeyPair, Failure> {
    if let Some(pair) = load(data_dir)? {
        return Ok(pair);
    }
    let pair = KeyPair::generate();
    write(data_dir, &pair)?;
    Ok(pair)
}

/// Reads the key; none where this node was never started. Whoever calls this holds the lock of the data folder. Blocks.
pub fn load(data_dir: &Path) -> Result<Option<KeyPair>, Failure> {
    let path = data_dir.join(NAME);
    match std::fs::read(&path) {
        Ok(secret) => {
            let secret: [u8; 32] = secret.as_slice().try_into().map_err(|_| {
                Failure::failed(format!(
                    "{} is not a key of 32 bytes; restore it, or delete it and this node gets a new identity",
                    path.display()
                ))
            })?;
            restrict(&path)?;
            Ok(Some(KeyPair::from_secret(&secret)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::from(error).context(format!("the key {} cannot be read", path.display()))),
    }
}

/// Gives a node this key. Whoever calls this holds the lock of the data folder. Blocks.
pub fn write(data_dir: &Path, pair: &KeyPair) -> Result<(), Failure> {
    let path = data_dir.join(NAME);
    create(data_dir, &path, pair).map_err(|error| {
        Failure::from(error).context(format!("the key {} cannot be written", path.display()))
    })
}

/// Only its owner may read a key, whatever became of its permissions.
fn restrict(path: &Path) -> Result<(), Failure> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!("{} could be read by others; now only by its owner", path.display());
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    }
    Ok(())
}

/// Written in whole under another name first, so that a crash leaves no part of a key.
fn create(data_dir: &Path, path: &Path, pair: &KeyPair) -> std::io::Result<()> {
    let draft = data_dir.join(format!("{NAME}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.set_permissions(PermissionsExt::from_mode(0o600))?;
    file.write_all(&pair.secret())?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_create(folder.path()).unwrap();
        let path = folder.path().join(NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let second = load_or_create(folder.path()).unwrap();
        assert_eq!(first.peer_id(), second.peer_id());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), b"short").unwrap();
        assert!(load_or_create(folder.path()).unwrap_err().message.contains("32 bytes"));
        assert_eq!(std::fs::read(folder.path().join(NAME)).unwrap(), b"short");
    }
}
