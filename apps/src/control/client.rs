//! The client of the control socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LinesCodec};

use super::message::{CONTROL_VERSION, Command, Envelope, Event, MAX_LINE};
use super::socket;
use crate::failure::Failure;

/// Maximum time to connect, and to send a command.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the process that uses a data directory.
#[derive(Debug)]
pub(crate) struct Connection(Framed<UnixStream, LinesCodec>);

/// Connects to the process that uses a data directory. Fails if no process listens.
pub(crate) async fn connect(data_dir: &Path) -> io::Result<Connection> {
    let path = socket::path(&data_dir.canonicalize()?);
    socket::check_folder(path.parent().expect("the path of a socket has a parent"))?;
    let stream = timeout(SEND_TIMEOUT, UnixStream::connect(path)).await??;
    Ok(Connection(Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE))))
}

impl Connection {
    /// Runs a command in the other process and passes its events to `show`. Dropping the future cancels the command.
    /// Returns `None` if the process closes the connection before the command completes.
    pub(crate) async fn run(
        mut self,
        command: Command,
        show: &mut (dyn FnMut(Event) + Send),
    ) -> Option<Result<(), Failure>> {
        let envelope = Envelope { version: CONTROL_VERSION, command };
        let line = match serde_json::to_string(&envelope) {
            Ok(line) if line.len() <= MAX_LINE => line,
            Ok(_) => return Some(Err(Failure::usage("the command is too long; specify fewer paths"))),
            Err(error) => return Some(Err(Failure::usage(format!("cannot send the command: {error}")))),
        };
        timeout(SEND_TIMEOUT, self.0.send(line)).await.ok()?.ok()?;
        loop {
            let line = self.0.next().await?.ok()?;
            match serde_json::from_str(&line) {
                Ok(Event::Done) => return Some(Ok(())),
                Ok(Event::Failed(failure)) => return Some(Err(failure)),
                Ok(event) => show(event),
                // An event of a newer version. `done` and `failed` exist in every version.
                Err(error) => tracing::debug!(%error, "unknown control event ignored"),
            }
        }
    }
}
