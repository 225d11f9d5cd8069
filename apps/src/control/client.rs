//! The asking end.

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

/// How long the owner may take to accept a connection or to take a command.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the owner of a data folder.
#[derive(Debug)]
pub struct Attached(Framed<UnixStream, LinesCodec>);

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The owner ran it to its end.
    Ended(Result<(), Failure>),
    /// The owner went away before.
    OwnerGone,
}

/// Connects to the owner. Fails where there is none, or none that listens yet.
pub async fn attach(data_dir: &Path) -> io::Result<Attached> {
    let path = socket::path(&data_dir.canonicalize()?);
    socket::check_folder(path.parent().expect("a socket lies in a folder"))?;
    let stream = timeout(PATIENCE, UnixStream::connect(path)).await??;
    Ok(Attached(Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE))))
}

impl Attached {
    /// Lets the owner run a command and shows its events. Dropping the future cancels the command.
    pub async fn run(mut self, command: Command, show: &mut (dyn FnMut(Event) + Send)) -> Outcome {
        let envelope = Envelope { version: CONTROL_VERSION, command };
        let line = match serde_json::to_string(&envelope) {
            Ok(line) if line.len() <= MAX_LINE => line,
            Ok(_) => {
                return Outcome::Ended(Err(Failure::usage(
                    "the command is too long; give fewer paths at once",
                )));
            }
            Err(error) => {
                return Outcome::Ended(Err(Failure::usage(format!("the command cannot be sent: {error}"))));
            }
        };
        if !matches!(timeout(PATIENCE, self.0.send(line)).await, Ok(Ok(()))) {
            return Outcome::OwnerGone;
        }
        loop {
            let Some(Ok(line)) = self.0.next().await else { return Outcome::OwnerGone };
            match serde_json::from_str(&line) {
                Ok(Event::Done) => return Outcome::Ended(Ok(())),
                Ok(Event::Failed(failure)) => return Outcome::Ended(Err(failure)),
                Ok(event) => show(event),
                // Of a newer version; whatever it is, the last event is known to all.
                Err(error) => tracing::debug!(%error, "an event of the owner was not understood"),
            }
        }
    }
}
