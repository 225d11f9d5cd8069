//! The Ed25519 key of a node: 32 bytes in the file `key` of the data directory.
//!
//! A node that lost its key would continue as another node, without its memberships, names and replicas. So a node that
//! had a database gets a new key only with `--init`.

use std::io::ErrorKind;
use std::path::Path;

use enjambre_control::{Failure, ResultContext};
use enjambre_core::KeyPair;
use tokio::fs;

use crate::access::write_file;
use crate::known_database;

/// The name of the file in the data directory.
pub(crate) const NAME: &str = "key";

/// Reads the key, or creates one at the first start. The caller holds the lock of the data directory.
pub(crate) async fn load_or_create(data_dir: &Path) -> Result<KeyPair, Failure> {
    match load(data_dir).await? {
        Some(pair) => Ok(pair),
        None => create(data_dir).await,
    }
}

/// As [`load_or_create`]. With `init` a node that lost its key gets another one. Returns whether `init` also applies to other
/// parts of the node: not if it did to the key, so that an error names each missing part before it is accepted.
pub(crate) async fn load_or_replace(data_dir: &Path, init: bool) -> Result<(KeyPair, bool), Failure> {
    if init && find(data_dir).await?.is_none() && known_database::exists(data_dir).await? {
        return Ok((create(data_dir).await?, false));
    }
    Ok((load_or_create(data_dir).await?, init))
}

async fn create(data_dir: &Path) -> Result<KeyPair, Failure> {
    let pair = KeyPair::generate();
    write(data_dir, &pair).await?;
    Ok(pair)
}

/// Reads the key. Returns `None` if the node was never started, and fails if it lost its key. The caller holds the lock of
/// the data directory.
pub(crate) async fn load(data_dir: &Path) -> Result<Option<KeyPair>, Failure> {
    let found = find(data_dir).await?;
    if found.is_none() && known_database::exists(data_dir).await? {
        return Err(Failure::failed(format!(
            "node key {} is missing, but the node had a database before; restore the key from a backup, or start the node \
             once with --init to continue as another node, without its memberships, names and replicas",
            data_dir.join(NAME).display()
        )));
    }
    Ok(found)
}

/// Reads the key, if there is one. The caller holds the lock of the data directory.
pub(crate) async fn find(data_dir: &Path) -> Result<Option<KeyPair>, Failure> {
    let path = data_dir.join(NAME);
    let secret = match fs::read(&path).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.context(format!("cannot read node key {}", path.display()))?,
    };
    let secret: [u8; 32] = secret.as_slice().try_into().map_err(|_| {
        Failure::failed(format!(
            "{} is not a key of 32 bytes; restore it from a backup, or delete it and start the node once with --init to \
             continue as another node",
            path.display()
        ))
    })?;
    Ok(Some(KeyPair::from_secret(&secret)))
}

/// Stores the key of a node. The caller holds the lock of the data directory.
pub(crate) async fn write(data_dir: &Path, pair: &KeyPair) -> Result<(), Failure> {
    let path = data_dir.join(NAME);
    let (folder, secret) = (data_dir.to_owned(), pair.secret());
    let written = crate::blocking(move || Ok(write_file(&folder, NAME, &secret)?)).await;
    written.context(format!("cannot write node key {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn key_is_created_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_create(folder.path()).await.unwrap();
        let path = folder.path().join(NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = load_or_create(folder.path()).await.unwrap();
        assert_eq!(first.peer_id(), second.peer_id());
    }

    #[tokio::test]
    async fn damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), b"short").unwrap();
        assert!(load_or_create(folder.path()).await.unwrap_err().message.contains("32 bytes"));
        assert_eq!(std::fs::read(folder.path().join(NAME)).unwrap(), b"short");
    }
}
