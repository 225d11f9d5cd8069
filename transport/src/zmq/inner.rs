//! A socket of the crate with one private Unix stream to the guard.
//!
//! Every connection, accepted or made, has a socket of its own that goes with it. The crate keeps a few bytes for each
//! peer that a socket ever had, and it does not tell reliably when one is lost: neither matters so. The guard owns the
//! listening end of the private stream, too, so the crate accepts nothing.

use std::io;
use std::path::PathBuf;

use tokio::net::{UnixListener, UnixStream};
use zeromq::{Socket, SocketOptions};

use super::Shared;
use crate::guard::cutoff::CutOff;
use crate::guard::handshake::{Introduction, shake_hands};

/// What the crate reads at once at most, in bytes.
const READ_BUFFER: usize = 256 * 1024;

/// A Unix socket in the private folder. Somebody who tidies up the folder for temporary files may have removed it.
fn listen(shared: &Shared) -> io::Result<(PathBuf, UnixListener)> {
    let path = shared.dir()?.socket();
    match UnixListener::bind(&path) {
        Ok(listener) => Ok((path, listener)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = shared.new_dir()?.socket();
            UnixListener::bind(&path).map(|listener| (path, listener))
        }
        Err(error) => Err(error),
    }
}

/// A socket of the crate, and the stream that leads to it, over which the guard has introduced itself.
pub(super) async fn connect<S: Socket>(
    shared: &Shared,
    guard: Introduction<'_>,
    expected: &str,
) -> Result<(S, UnixStream), CutOff> {
    let (path, listener) = listen(shared)?;
    let mut options = SocketOptions::default();
    options.no_connect_timeout().read_buffer(4096, READ_BUFFER, 4);
    let mut socket = S::with_options(options);
    let address = format!("ipc://{}", path.display());
    let connect = async { socket.connect(&address).await.map_err(io::Error::other) };
    let accept = async {
        let (mut stream, _) = listener.accept().await?;
        shake_hands(&mut stream, guard, &[expected]).await.map_err(io::Error::other)?;
        Ok(stream)
    };
    let connected = tokio::try_join!(connect, accept);
    // It has served its purpose; where it cannot be removed, it goes with the folder.
    let _ = std::fs::remove_file(&path);
    let ((), stream) = connected?;
    Ok((socket, stream))
}
