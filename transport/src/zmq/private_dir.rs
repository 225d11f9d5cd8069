//! The folder of the private Unix sockets: only this user may look into it, and it goes with the transport.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

/// The longest path of a Unix socket is 108 bytes on Linux and 104 on macOS.
const LONGEST_PATH: usize = 100;
/// A slash and the name of a socket.
const LONGEST_NAME: usize = 24;

#[derive(Debug)]
pub(crate) struct PrivateDir {
    dir: TempDir,
    next: AtomicU64,
}

impl PrivateDir {
    pub(crate) fn new() -> io::Result<Self> {
        let wanted = std::env::temp_dir();
        // The folder itself takes as much as a socket in it.
        let fits = wanted.is_absolute()
            && wanted.as_os_str().len() + 2 * LONGEST_NAME <= LONGEST_PATH
            && wanted.to_str().is_some();
        let parent = if fits { wanted.as_path() } else { Path::new("/tmp") };
        let dir = tempfile::Builder::new()
            .prefix("enjambre-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        Ok(Self { dir, next: AtomicU64::new(0) })
    }

    /// A path in the folder that was not given out before.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(format!("{:x}", self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_private_and_its_paths_are_short() {
        let dir = PrivateDir::new().unwrap();
        let mode = dir.dir.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let (one, two) = (dir.socket(), dir.socket());
        assert_ne!(one, two);
        assert!(one.as_os_str().len() <= LONGEST_PATH);
    }
}
