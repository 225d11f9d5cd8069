//! The data directory of a node: its permissions, its lock, and small files in it.

use std::fs::Permissions;
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use enjambre_control::{Failure, ResultContext};
use enjambre_core::storage::database_file::{FileLock, create_private_dir};

use crate::access::{others_can_write, own_uid, user_name};
use crate::control::socket;
use crate::node_key;
use crate::spool;

const LOCK: &str = "lock";

/// A data directory that is locked by this process until the value is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: FileLock,
}

impl DataDir {
    /// Creates the directory if necessary and locks it. Returns `None` if another process holds the lock.
    ///
    /// Only this user can read or write the directory afterwards. With `group_access`, the group of the directory can
    /// reach the control socket in it.
    pub(crate) async fn try_lock(path: &Path, group_access: bool) -> Result<Option<Self>, Failure> {
        let folder = path.to_owned();
        let locked = crate::blocking(move || Ok(Self::try_lock_blocking(&folder, group_access)?)).await;
        locked.context(format!("cannot use data directory {}", path.display()))
    }

    fn try_lock_blocking(path: &Path, group_access: bool) -> io::Result<Option<Self>> {
        create_private_dir(path)?;
        // Resolves links, so that a relative database path means the same to all processes.
        let path = path.canonicalize()?;
        restrict(&path, group_access)?;
        let lock = FileLock::try_acquire(&path.join(LOCK))?;
        if lock.is_some() {
            spool::clean(&path)?;
            make_private(&path)?;
        }
        Ok(lock.map(|lock| Self { path, _lock: lock }))
    }

    /// Returns the canonical path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes a directory that the caller has created, without a database, and its parents in `created`.
    pub(crate) async fn remove(self, created: Vec<PathBuf>) {
        let remove = move || {
            // The key first: whoever locks the directory from then on creates another one.
            for name in [node_key::NAME, LOCK] {
                std::fs::remove_file(self.path.join(name))?;
            }
            // Fails if the directory has other content.
            created.iter().try_for_each(std::fs::remove_dir)?;
            Ok(())
        };
        let _ = crate::blocking(remove).await;
    }
}

/// Returns the directory and its parents that do not exist, the innermost first.
pub(crate) fn missing_dirs(path: &Path) -> Vec<PathBuf> {
    path.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect()
}

/// Returns the failure of a command that requires a node that was started before.
pub(crate) fn never_started(path: &Path) -> Failure {
    Failure::not_found(format!(
        "no node was ever started in data directory {}; check the configuration",
        path.display()
    ))
}

/// Returns the user that a data directory belongs to, unless it belongs to this user or does not exist.
pub(crate) fn other_owner(path: &Path) -> Option<u32> {
    let owner = std::fs::metadata(path).ok()?.uid();
    (owner != own_uid()).then_some(owner)
}

/// Rejects a directory that another user owns or can write. Restricts access to this user, and to the group for
/// `group_access`.
fn restrict(path: &Path, group_access: bool) -> io::Result<()> {
    let found = std::fs::metadata(path)?;
    let denied = |text: String| Err(Error::new(ErrorKind::PermissionDenied, text));
    if found.uid() != own_uid() {
        let owner = user_name(found.uid());
        return denied(format!("it belongs to user {owner}; run the command as that user"));
    }
    if others_can_write(&found) {
        return denied(
            "other users can write it; check its content, then make it private with chmod 700".into(),
        );
    }
    let mode = if group_access { 0o710 } else { 0o700 };
    if found.mode() & 0o777 == mode {
        return Ok(());
    }
    // The directory may be that of other programs, which need its permissions.
    if found.mode() & 0o077 & !mode != 0 {
        if !is_of_node(path)? {
            return denied(
                "it has other content that other users can read; choose another directory, or make it private with \
                 chmod 700"
                    .into(),
            );
        }
        tracing::warn!(path = %path.display(), "data directory was readable by other users, permissions corrected");
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Makes the entries private that other users can access, for example after a copy without permissions. The caller holds the
/// lock.
fn make_private(path: &Path) -> io::Result<()> {
    let mut corrected = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let (name, Ok(found)) = (entry.file_name(), entry.metadata()) else { continue };
        // The control socket sets the permissions of its directory.
        let is_private = found.mode() & 0o077 == 0 || name == socket::FOLDER;
        if is_private || found.uid() != own_uid() || !(found.is_file() || found.is_dir()) {
            continue;
        }
        std::fs::set_permissions(entry.path(), Permissions::from_mode(found.mode() & 0o700))?;
        corrected += 1;
    }
    if corrected > 0 {
        let path = path.display();
        tracing::warn!(%path, corrected, "data directory had entries that other users could access, permissions corrected");
    }
    Ok(())
}

/// Returns whether a directory is empty or was used by a node.
fn is_of_node(path: &Path) -> io::Result<bool> {
    Ok([LOCK, node_key::NAME].iter().any(|name| path.join(name).exists())
        || std::fs::read_dir(path)?.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::write_file;

    #[tokio::test]
    async fn data_directory_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let lock = DataDir::try_lock(&path, false).await.unwrap().unwrap();
        assert!(DataDir::try_lock(&path, false).await.unwrap().is_none());
        drop(lock);
        assert!(DataDir::try_lock(&path, false).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn file_in_place_of_directory_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(DataDir::try_lock(&path, false).await.unwrap_err().message.contains(path.to_str().unwrap()));
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    fn directory(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[tokio::test]
    async fn readable_data_directory_becomes_private() {
        let (_folder, path) = directory(0o755);
        drop(DataDir::try_lock(&path, false).await.unwrap().unwrap());
        assert_eq!((mode(&path), mode(&path.join(LOCK))), (0o700, 0o600));
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        drop(DataDir::try_lock(&path, true).await.unwrap().unwrap());
        assert_eq!(mode(&path), 0o710);
    }

    #[tokio::test]
    async fn entries_of_data_directory_become_private() {
        let (folder, path) = directory(0o710);
        let outside = folder.path().join("outside");
        for (file, bits) in
            [(&path.join(LOCK), 0o600), (&path.join("catalogue.db"), 0o664), (&outside, 0o644)]
        {
            std::fs::write(file, "").unwrap();
            std::fs::set_permissions(file, Permissions::from_mode(bits)).unwrap();
        }
        std::fs::create_dir(path.join("content")).unwrap();
        std::fs::set_permissions(path.join("content"), Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
        drop(DataDir::try_lock(&path, true).await.unwrap().unwrap());
        let modes = ["catalogue.db", "content", "link"].map(|name| mode(&path.join(name)));
        assert_eq!((modes, mode(&path)), ([0o600, 0o700, 0o644], 0o710));
    }

    #[tokio::test]
    async fn leftover_content_is_deleted_and_files_of_the_user_are_kept() {
        let (_folder, path) = directory(0o700);
        std::fs::create_dir(path.join("spool")).unwrap();
        for name in ["spool/input-x", "spool/notes", "input-x"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        drop(DataDir::try_lock(&path, false).await.unwrap().unwrap());
        assert!(!path.join("spool/input-x").exists());
        assert!(path.join("spool/notes").exists() && path.join("input-x").exists());
    }

    #[tokio::test]
    async fn writable_data_directory_is_rejected() {
        let (_folder, path) = directory(0o757);
        let failure = DataDir::try_lock(&path, false).await.unwrap_err();
        assert!(failure.message.contains("other users can write"), "{failure}");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn directory_of_other_programs_keeps_its_permissions() {
        let (_folder, path) = directory(0o755);
        std::fs::write(path.join("page.html"), "").unwrap();
        assert!(DataDir::try_lock(&path, false).await.unwrap_err().message.contains("other content"));
        assert_eq!(mode(&path), 0o755);
    }

    #[test]
    fn written_file_is_private_and_replaces_a_link() {
        let (folder, path) = directory(0o700);
        let target = folder.path().join("target");
        std::fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, path.join("key.new")).unwrap();
        write_file(&path, "key", b"secret").unwrap();
        assert_eq!(std::fs::read(path.join("key")).unwrap(), b"secret");
        assert_eq!(mode(&path.join("key")), 0o600);
        assert_eq!(std::fs::read(&target).unwrap(), b"kept");
    }
}
