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
pub struct Connection(Framed<UnixStream, LinesCodec>);

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command completed.
    Ended(Result<(), Failure>),
    /// The process closed the connection before the command completed.
    ConnectionClosed,
}

/// Connects to the process that uses a data directory. Fails if no process listens.
pub async fn connect(data_dir: &Path) -> io::Result<Connection> {
    let path = socket::path(&data_dir.canonicalize()?);
    socket::check_folder(path.parent().expect("the path of a socket has a parent"))?;
    let stream = timeout(SEND_TIMEOUT, UnixStream::connect(path)).await??;
    Ok(Connection(Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE))))
}

impl Connection {
    /// Runs a command in the other process and passes its events to `show`. Dropping the future cancels the command.
    pub async fn run(mut self, command: Command, show: &mut (dyn FnMut(Event) + Send)) -> Outcome {
        let envelope = Envelope { version: CONTROL_VERSION, command };
        let line = match serde_json::to_string(&envelope) {
            Ok(line) if line.len() <= MAX_LINE => line,
            Ok(_) => {
                return Outcome::Ended(Err(Failure::usage("the command is too long; specify fewer paths")));
            }
            Err(error) => {
                return Outcome::Ended(Err(Failure::usage(format!("cannot send the command: {error}"))));
            }
        };
        if !matches!(timeout(SEND_TIMEOUT, self.0.send(line)).await, Ok(Ok(()))) {
            return Outcome::ConnectionClosed;
        }
        loop {
            let Some(Ok(line)) = self.0.next().await else { return Outcome::ConnectionClosed };
            match serde_json::from_str(&line) {
                Ok(Event::Done) => return Outcome::Ended(Ok(())),
                Ok(Event::Failed(failure)) => return Outcome::Ended(Err(failure)),
                Ok(event) => show(event),
                // An event of a newer version. `done` and `failed` exist in every version.
                Err(error) => tracing::debug!(%error, "unknown control event ignored"),
            }
        }
    }
}
