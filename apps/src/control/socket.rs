//! The path of the control socket of a data directory.
//!
//! The socket is in a directory of its own that only its user can enter, so that other users cannot connect even
//! while the socket is created. With `group_access`, the group of the data directory can enter it as well. The length of
//! the path of a Unix socket is limited. For a long data directory, the socket is in the system's temporary directory
//! instead, under a name derived from the data directory.

use std::fs::{DirBuilder, Permissions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::access::{own_uid, user_name};

/// Maximum length of the path of a Unix socket on all systems, in bytes.
const MAX_PATH: usize = 100;
/// The name of the directory of the socket in a data directory.
pub(crate) const FOLDER: &str = "control";
const SOCKET: &str = "socket";

/// Returns the path of the socket of a data directory, whose path must be canonical.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    let inside = data_dir.join(FOLDER).join(SOCKET);
    if inside.as_os_str().len() <= MAX_PATH {
        return inside;
    }
    let hash = blake3::hash(data_dir.as_os_str().as_bytes()).to_hex();
    let name = format!("enjambre-{}", &hash[..16]);
    let temporary = std::env::temp_dir().join(&name).join(SOCKET);
    if temporary.as_os_str().len() <= MAX_PATH {
        temporary
    } else {
        Path::new("/tmp").join(name).join(SOCKET)
    }
}

/// Listens on the socket of a data directory and replaces a stale socket. The caller holds the lock.
pub(crate) fn listen(data_dir: &Path, group_access: bool) -> Result<UnixListener> {
    let path = path(data_dir);
    let folder = path.parent().expect("the path of a socket has a parent");
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => check_owner(folder, own_uid())?,
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(&path)?,
        Ok(_) => {
            let text = format!("{} exists and is not a socket; remove it", path.display());
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(if group_access { 0o660 } else { 0o600 }))?;
    if group_access {
        let group = std::fs::metadata(data_dir)?.gid();
        for path in [&path, folder] {
            chown(path, None, Some(group))?;
        }
        std::fs::set_permissions(folder, Permissions::from_mode(0o710))?;
    }
    Ok(listener)
}

/// Removes the socket of a data directory. The caller holds the lock and no longer listens.
pub(crate) fn remove(data_dir: &Path) {
    let path = path(data_dir);
    let folder = path.parent().expect("the path of a socket has a parent");
    // A socket that remains is replaced at the next start.
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_dir(folder);
}

/// Rejects a directory that does not belong to the owner of the data directory.
pub(super) fn check_owner(folder: &Path, owner: u32) -> Result<()> {
    let found = std::fs::symlink_metadata(folder)?;
    if found.is_dir() && found.uid() == owner {
        return Ok(());
    }
    let text = format!("{} is not a directory of user {}; remove it", folder.display(), user_name(owner));
    Err(Error::new(ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_is_private_and_replaces_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let listener = listen(folder.path(), false).unwrap();
            let path = path(folder.path());
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
            drop(listener);
            assert!(path.exists(), "dropping a listener does not remove its socket");
        }
        remove(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn socket_is_open_to_the_group_of_the_data_directory() {
        let folder = tempfile::tempdir().unwrap();
        // Only root can choose any group.
        let group = chown(folder.path(), None, Some(12345)).map_or_else(|_| own_gid(), |()| 12345);
        for access in [true, false, true] {
            let _listener = listen(folder.path(), access).unwrap();
            let path = path(folder.path());
            let (socket, parent) = (path.metadata().unwrap(), path.parent().unwrap().metadata().unwrap());
            let expected = if access { (0o660, 0o710) } else { (0o600, 0o700) };
            assert_eq!((socket.mode() & 0o777, parent.mode() & 0o777), expected);
            assert!(!access || (socket.gid(), parent.gid()) == (group, group));
        }
    }

    fn own_gid() -> u32 {
        rustix::process::getegid().as_raw()
    }

    #[tokio::test]
    async fn long_data_directory_uses_temporary_directory() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let path = path(&long);
        assert!(path.as_os_str().len() <= MAX_PATH && !path.starts_with(&long));
        let listener = listen(&long, false).unwrap();
        drop(listener);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn file_in_place_of_socket_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(listen(folder.path(), false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
