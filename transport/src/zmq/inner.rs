//! A socket of the crate with one private Unix stream to the guard.
//!
//! Every connection, accepted or made, has a socket of its own that goes with it. The crate keeps a few bytes for each
//! peer that a socket ever had, and it does not tell reliably when one is lost: neither matters so. The sockets connect
//! to a [`Doorway`] that the guard owns, in a folder that only this user may look into, so the crate accepts nothing.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use zeromq::{Socket, SocketOptions};

use crate::guard::cutoff::CutOff;
use crate::guard::handshake::{Introduction, shake_hands};
use crate::guard::splice::BUFFER;

/// The longest path of a Unix socket is 108 bytes on Linux and 104 on macOS.
const LONGEST_PATH: usize = 100;
/// How the folder's name begins, and the name of the socket in it.
const PREFIX: &str = "enjambre-";
const SOCKET: &str = "guard";
/// How old a folder is in which surely somebody listens, if its process lives.
const SETTLED: Duration = Duration::from_secs(60);
/// The folder's name and the socket's, with their slashes.
const NAMES: usize = 24;

/// Where the sockets of the crate meet the guard. It stays as long as the transport, because making and removing files
/// may take long while the disk is busy.
#[derive(Debug, Default)]
pub(super) struct Doorway {
    open: Mutex<Option<Arc<Open>>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    /// Held from a socket's connecting to its greeting, so that no two are mixed up.
    listener: Mutex<UnixListener>,
    _dir: TempDir,
}

/// Where the folder is made: among the temporary files, unless the path would be too long for a socket.
fn parent() -> PathBuf {
    let wanted = std::env::temp_dir();
    let fits =
        wanted.is_absolute() && wanted.as_os_str().len() + NAMES <= LONGEST_PATH && wanted.to_str().is_some();
    if fits { wanted } else { PathBuf::from("/tmp") }
}

/// Removes the folders of processes that were killed. Where nobody listens any more, the socket refuses; a folder
/// that is younger than `settled` may be about to begin to listen.
fn sweep(parent: &Path, settled: Duration) {
    let Ok(entries) = parent.read_dir() else { return };
    for dir in
        entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()))
    {
        let old = dir
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= settled));
        if !old {
            continue;
        }
        let tried = std::os::unix::net::UnixStream::connect(dir.path().join(SOCKET));
        // What cannot be removed belongs to somebody else.
        let _ = match tried.map_err(|error| error.kind()) {
            Err(io::ErrorKind::ConnectionRefused) => std::fs::remove_dir_all(dir.path()),
            // Killed before it began to listen: only an empty folder goes.
            Err(io::ErrorKind::NotFound) => std::fs::remove_dir(dir.path()),
            _ => Ok(()),
        };
    }
}

fn make(parent: &Path) -> io::Result<(TempDir, PathBuf, std::os::unix::net::UnixListener)> {
    sweep(parent, SETTLED);
    let dir = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)?;
    let path = dir.path().join(SOCKET);
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    Ok((dir, path, listener))
}

impl Doorway {
    /// Opens it where it is not open.
    async fn open(&self) -> io::Result<Arc<Open>> {
        let mut current = self.open.lock().await;
        if let Some(open) = &*current {
            return Ok(Arc::clone(open));
        }
        let (dir, path, listener) =
            tokio::task::spawn_blocking(|| make(&parent())).await.map_err(io::Error::other)??;
        let listener = Mutex::new(UnixListener::from_std(listener)?);
        let open = Arc::new(Open { path, listener, _dir: dir });
        *current = Some(Arc::clone(&open));
        Ok(open)
    }

    /// A socket of the crate, and the stream that leads to it, over which the guard has introduced itself.
    pub(super) async fn connect<S: Socket>(
        &self,
        guard: Introduction<'_>,
        expected: &str,
    ) -> Result<(S, UnixStream), CutOff> {
        let open = self.open().await?;
        let listener = open.listener.lock().await;
        let mut options = SocketOptions::default();
        options.no_connect_timeout().read_buffer(4096, BUFFER, 4);
        let mut socket = S::with_options(options);
        let address = format!("ipc://{}", open.path.display());
        let connect = async {
            if !open.path.exists() {
                // Somebody has tidied up the folder for temporary files, and the crate would try for ever.
                *self.open.lock().await = None;
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            socket.connect(&address).await.map_err(io::Error::other)
        };
        let accept = async {
            loop {
                let (mut stream, _) = listener.accept().await?;
                // One that was given up on its way is closed at the other end.
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

    const GUARD: Introduction<'_> = Introduction { socket_type: "ROUTER", identity: b"" };

    #[test]
    fn the_folder_is_private_and_the_path_is_short() {
        let (dir, path, _listener) = make(&parent()).unwrap();
        let mode = dir.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(path.as_os_str().len() <= LONGEST_PATH);
    }

    #[test]
    fn the_folder_of_a_killed_process_is_swept_and_no_other() {
        let parent = tempfile::tempdir().unwrap();
        let (alive, _path, _listener) = make(parent.path()).unwrap();
        let (dead, _, listener) = make(parent.path()).unwrap();
        // Killed: nobody listens, and nobody tidies up.
        drop(listener);
        let dead = dead.keep();
        let foreign = parent.path().join("enjambre-notes");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("note"), "kept").unwrap();
        let early = parent.path().join("enjambre-killed");
        std::fs::create_dir(&early).unwrap();
        sweep(parent.path(), SETTLED);
        assert!(dead.exists() && early.exists(), "too young to be judged");
        sweep(parent.path(), Duration::ZERO);
        assert!(!dead.exists() && !early.exists());
        assert!(alive.path().exists() && foreign.exists());
    }

    #[tokio::test]
    async fn an_attempt_that_was_given_up_does_not_disturb_the_next() {
        let doorway = Doorway::default();
        let path = doorway.open().await.unwrap().path.clone();
        // Half an attempt, and then none.
        drop(UnixStream::connect(&path).await.unwrap());
        drop(UnixStream::connect(&path).await.unwrap());
        doorway.connect::<DealerSocket>(GUARD, "DEALER").await.unwrap();
        let dealer = Introduction { socket_type: "DEALER", identity: b"x" };
        doorway.connect::<RouterSocket>(dealer, "ROUTER").await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_was_removed_is_made_again() {
        let doorway = Doorway::default();
        let path = doorway.open().await.unwrap().path.clone();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(doorway.connect::<DealerSocket>(GUARD, "DEALER").await.is_err());
        doorway.connect::<DealerSocket>(GUARD, "DEALER").await.unwrap();
    }
}
