//! Private Unix streams between the guard and sockets of the `zeromq` crate.
//!
//! Each connection has its own socket. So it does not matter that the crate keeps a few bytes for each former peer of a
//! socket, and does not report the loss of a peer reliably. The sockets connect to an [`InnerListener`] of the guard, in a
//! directory that only this user can access, so the crate accepts no connections.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::runtime;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use zeromq::{Socket, SocketOptions};

use crate::guard::disconnect::Disconnect;
use crate::guard::handshake::{SocketInfo, shake_hands};
use crate::guard::splice::BUFFER;

/// Maximum length of a socket path. The limit is 108 bytes on Linux and 104 bytes on macOS.
const MAX_PATH: usize = 100;
/// The prefix of the directory name, and the name of the socket.
const PREFIX: &str = "enjambre-";
const SOCKET: &str = "guard";
/// The age after which a directory contains a listening socket if its process is alive.
const MIN_AGE: Duration = Duration::from_secs(60);
/// The length of both names with their slashes.
const NAMES: usize = 24;

/// Accepts the connections of the crate's sockets. It exists as long as the transport, because creating and removing files
/// can take long on a busy disk.
#[derive(Debug, Default)]
pub(super) struct InnerListener {
    open: Mutex<Option<Arc<Open>>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    /// Locked from the connection of a socket to its handshake, so that sockets are not confused.
    listener: Mutex<UnixListener>,
    _dir: TempDir,
}

/// The parent directory: the directory for temporary files, unless the path would be too long for a socket.
fn parent() -> PathBuf {
    let preferred = std::env::temp_dir();
    let fits = preferred.is_absolute()
        && preferred.as_os_str().len() + NAMES <= MAX_PATH
        && preferred.to_str().is_some();
    if fits { preferred } else { PathBuf::from("/tmp") }
}

/// Removes the directories of killed processes, whose sockets refuse connections. A directory younger than `min_age` may
/// not have a listening socket yet.
fn sweep(parent: &Path, min_age: Duration) {
    let Ok(entries) = parent.read_dir() else { return };
    for dir in
        entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()))
    {
        let old = dir
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= min_age));
        if !old {
            continue;
        }
        let connected = std::os::unix::net::UnixStream::connect(dir.path().join(SOCKET));
        // Removal fails if the directory belongs to another user.
        let _ = match connected.map_err(|error| error.kind()) {
            Err(io::ErrorKind::ConnectionRefused) => std::fs::remove_dir_all(dir.path()),
            // The process was killed before it listened. Only an empty directory is removed.
            Err(io::ErrorKind::NotFound) => std::fs::remove_dir(dir.path()),
            _ => Ok(()),
        };
    }
}

fn create(parent: &Path) -> io::Result<(TempDir, PathBuf, std::os::unix::net::UnixListener)> {
    sweep(parent, MIN_AGE);
    let dir = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)?;
    let path = dir.path().join(SOCKET);
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    Ok((dir, path, listener))
}

impl InnerListener {
    /// Opens the listener unless it is open.
    async fn open(&self) -> io::Result<Arc<Open>> {
        let mut current = self.open.lock().await;
        if let Some(open) = &*current {
            return Ok(Arc::clone(open));
        }
        let (dir, path, listener) =
            runtime::spawn_blocking(|| create(&parent())).await.map_err(io::Error::other)??;
        let listener = Mutex::new(UnixListener::from_std(listener)?);
        let open = Arc::new(Open { path, listener, _dir: dir });
        *current = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Creates a socket of the crate. Returns it and the stream to it, after the handshake.
    pub(super) async fn connect<S: Socket>(
        &self,
        guard: SocketInfo<'_>,
        expected: &str,
    ) -> Result<(S, UnixStream), Disconnect> {
        let open = self.open().await?;
        let listener = open.listener.lock().await;
        let mut options = SocketOptions::default();
        options.no_connect_timeout().read_buffer(4096, BUFFER, 4);
        let mut socket = S::with_options(options);
        let address = format!("ipc://{}", open.path.display());
        let connect = async {
            if !open.path.exists() {
                // The directory was removed. The crate would retry forever.
                *self.open.lock().await = None;
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            socket.connect(&address).await.map_err(io::Error::other)
        };
        let accept = async {
            loop {
                let (mut stream, _) = listener.accept().await?;
                // Fails for an abandoned connection, which the other side has closed.
                if shake_hands(&mut stream, guard, &[expected]).await.is_ok() {
                    return Ok(stream);
                }
            }
        };
        let ((), stream) = tokio::try_join!(connect, accept)?;
        Ok((socket, stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeromq::{DealerSocket, RouterSocket};

    const GUARD: SocketInfo<'_> = SocketInfo { socket_type: "ROUTER", identity: b"" };

    #[test]
    fn directory_is_private_and_its_path_short() {
        let (dir, path, _listener) = create(&parent()).unwrap();
        let mode = dir.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(path.as_os_str().len() <= MAX_PATH);
    }

    #[test]
    fn only_directories_of_killed_processes_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let (alive, _path, _listener) = create(parent.path()).unwrap();
        let (dead, _, listener) = create(parent.path()).unwrap();
        // Simulates a killed process: no listener, and no cleanup.
        drop(listener);
        let dead = dead.keep();
        let foreign = parent.path().join("enjambre-notes");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("note"), "kept").unwrap();
        let early = parent.path().join("enjambre-killed");
        std::fs::create_dir(&early).unwrap();
        sweep(parent.path(), MIN_AGE);
        assert!(dead.exists() && early.exists(), "too recent");
        sweep(parent.path(), Duration::ZERO);
        assert!(!dead.exists() && !early.exists());
        assert!(alive.path().exists() && foreign.exists());
    }

    #[tokio::test]
    async fn abandoned_connection_does_not_affect_the_next() {
        let inner_listener = InnerListener::default();
        let path = inner_listener.open().await.unwrap().path.clone();
        // Two abandoned connections.
        drop(UnixStream::connect(&path).await.unwrap());
        drop(UnixStream::connect(&path).await.unwrap());
        inner_listener.connect::<DealerSocket>(GUARD, "DEALER").await.unwrap();
        let dealer = SocketInfo { socket_type: "DEALER", identity: b"x" };
        inner_listener.connect::<RouterSocket>(dealer, "ROUTER").await.unwrap();
    }

    #[tokio::test]
    async fn removed_directory_is_recreated() {
        let inner_listener = InnerListener::default();
        let path = inner_listener.open().await.unwrap().path.clone();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(inner_listener.connect::<DealerSocket>(GUARD, "DEALER").await.is_err());
        inner_listener.connect::<DealerSocket>(GUARD, "DEALER").await.unwrap();
    }
}
