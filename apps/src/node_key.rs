//! The Ed25519 key of a node: 32 bytes in the file `key` of the data directory.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use enjambre_core::model::identity::KeyPair;

use crate::failure::Failure;

const NAME: &str = "key";

/// Reads the key, or creates one at the first start. The caller holds the lock of the data directory. Blocks.
pub fn load_or_create(data_dir: &Path) -> Result<KeyPair, Failure> {
    if let Some(pair) = load(data_dir)? {
        return Ok(pair);
    }
    let pair = KeyPair::generate();
    write(data_dir, &pair)?;
    Ok(pair)
}

/// Reads the key. Returns `None` if the node was never started. The caller holds the lock of the data directory. Blocks.
pub fn load(data_dir: &Path) -> Result<Option<KeyPair>, Failure> {
    let path = data_dir.join(NAME);
    match std::fs::read(&path) {
        Ok(secret) => {
            let secret: [u8; 32] = secret.as_slice().try_into().map_err(|_| {
                Failure::failed(format!(
                    "{} is not a key of 32 bytes; restore it from a backup, or delete it to create a new identity",
                    path.display()
                ))
            })?;
            restrict(&path)?;
            Ok(Some(KeyPair::from_secret(&secret)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::from(error).context(format!("cannot read node key {}", path.display()))),
    }
}

/// Stores the key of a node. The caller holds the lock of the data directory. Blocks.
pub fn write(data_dir: &Path, pair: &KeyPair) -> Result<(), Failure> {
    let path = data_dir.join(NAME);
    create(data_dir, &path, pair)
        .map_err(|error| Failure::from(error).context(format!("cannot write node key {}", path.display())))
}

/// Restores the permissions of a key that other users can read.
fn restrict(path: &Path) -> Result<(), Failure> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "node key was readable by other users, permissions corrected");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    }
    Ok(())
}

/// Writes a temporary file and renames it, so that a crash leaves no partial key.
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
    fn key_is_created_once_and_private() {
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
    fn damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), b"short").unwrap();
        assert!(load_or_create(folder.path()).unwrap_err().message.contains("32 bytes"));
        assert_eq!(std::fs::read(folder.path().join(NAME)).unwrap(), b"short");
    }
}
