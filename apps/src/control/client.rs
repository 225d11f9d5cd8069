//! The client of the control socket.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enjambre_control::{Command, Event, Failure, Input, next_part, no_input};
use futures::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LinesCodec};

use super::message::{ALIVE_INTERVAL, CONTROL_VERSION, Envelope, MAX_LINE};
use super::socket;

/// Maximum time to connect, and to send a command.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time without an event, after which the other process counts as frozen.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5 * ALIVE_INTERVAL.as_secs());

/// A connection to the process that uses a data directory.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Framed<UnixStream, LinesCodec>,
    settings: BTreeMap<String, String>,
    input: Input,
}

/// Connects to the process that uses a data directory. Fails if no process listens.
pub(crate) async fn connect(data_dir: &Path) -> io::Result<Connection> {
    let data_dir = data_dir.canonicalize()?;
    let path = socket::path(&data_dir);
    socket::check_owner(
        path.parent().expect("the path of a socket has a parent"),
        data_dir.metadata()?.uid(),
    )?;
    let stream = timeout(SEND_TIMEOUT, UnixStream::connect(path)).await??;
    let stream = Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE));
    Ok(Connection { stream, settings: BTreeMap::new(), input: no_input() })
}

impl Connection {
    /// Lets the command fail if the other process has other values of these settings.
    pub(crate) fn with_settings(self, settings: BTreeMap<String, String>) -> Self {
        Self { settings, ..self }
    }

    /// Sends content with the command.
    pub(crate) fn with_input(self, input: Input) -> Self {
        Self { input, ..self }
    }

    /// Runs a command in the other process and passes its events to `show`. Dropping the future cancels the command.
    /// Returns `None` if the process closes the connection before the command completes.
    pub(crate) async fn run(
        mut self,
        command: Command,
        show: &mut (dyn FnMut(Event) + Send),
    ) -> Option<Result<(), Failure>> {
        let envelope = Envelope { version: CONTROL_VERSION, command, settings: self.settings };
        let line = match serde_json::to_string(&envelope) {
            Ok(line) if line.len() <= MAX_LINE => line,
            Ok(_) => return Some(Err(Failure::usage("the command is too long; specify fewer paths"))),
            Err(error) => return Some(Err(Failure::usage(format!("cannot send the command: {error}")))),
        };
        let frozen = || Some(Err(Failure::failed("the running node does not respond; restart it")));
        let Ok(sent) = timeout(SEND_TIMEOUT, self.stream.send(line)).await else { return frozen() };
        sent.ok()?;
        let (mut sink, mut stream) = self.stream.split();
        let receive = async {
            loop {
                let Ok(line) = timeout(SILENCE_TIMEOUT, stream.next()).await else { return frozen() };
                match serde_json::from_str(&line?.ok()?) {
                    Ok(Event::Done) => return Some(Ok(())),
                    Ok(Event::Failed(failure)) => return Some(Err(failure)),
                    Ok(Event::Alive) => {}
                    Ok(event) => show(event),
                    // An event of a newer version. `done` and `failed` exist in every version.
                    Err(error) => tracing::debug!(%error, "unknown control event ignored"),
                }
            }
        };
        let send = async {
            loop {
                let part = STANDARD.encode(next_part(&mut self.input).await?);
                let is_end = part.is_empty();
                // If the other process is gone, `receive` ends.
                if sink.send(part).await.is_err() || is_end {
                    return Ok::<_, io::Error>(());
                }
            }
        };
        tokio::select! {
            result = receive => result,
            Err(error) = send => Some(Err(error.into())),
        }
    }
}
