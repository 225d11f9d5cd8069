//! The server of the control socket: one command per connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enjambre_control::{Command, Event, Events, Execute, Failure, Output};
use enjambre_core::runtime;
use futures::{SinkExt, StreamExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, FramedWrite, LinesCodec};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::message::{ALIVE_INTERVAL, CONTROL_VERSION, Envelope, MAX_LINE};

/// Maximum number of concurrent commands. Further clients wait.
const MAX_CLIENTS: usize = 64;
/// Maximum number of parts of content that wait for the command.
const QUEUED_INPUT: usize = 16;
/// Maximum time to receive a command.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time to send an event of a command without content.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the commands of the socket until `stop` is cancelled. Running commands are dropped then, and their connections
/// closed.
///
/// `settings` are the effective settings of the node, by key, as TOML values.
pub(crate) async fn serve(
    listener: UnixListener,
    handler: Arc<dyn Execute>,
    settings: BTreeMap<String, String>,
    stop: CancellationToken,
) {
    let settings = Arc::new(settings);
    let tasks = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                (listener.accept().await, slot)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), slot) => {
                let (handler, settings, stop) = (Arc::clone(&handler), Arc::clone(&settings), stop.clone());
                runtime::spawn_in(&tasks, async move {
                    tokio::select! { () = stop.cancelled() => {} () = answer(stream, &*handler, &settings) => {} }
                    drop(slot);
                });
            }
            (Err(error), _) => {
                // Probably out of file descriptors. Wait for other commands to finish.
                tracing::warn!(%error, "control connection accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

type Reader = FramedRead<OwnedReadHalf, LinesCodec>;
type Writer = FramedWrite<OwnedWriteHalf, LinesCodec>;

async fn answer(stream: UnixStream, handler: &dyn Execute, node: &BTreeMap<String, String>) {
    let (reader, writer) = stream.into_split();
    let mut reader = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE));
    let mut writer = FramedWrite::new(writer, LinesCodec::new());
    let mut send_timeout = SEND_TIMEOUT;
    let result = match command(&mut reader, node).await {
        Ok(Some(Envelope { command, .. })) => {
            if matches!(command, Command::Get { output: Output::Client, .. }) {
                // The consumer of the content can pause for any time.
                send_timeout = Duration::MAX;
            }
            let (events, mut receiver) = Events::channel();
            let (input, content) = mpsc::channel(QUEUED_INPUT);
            let run = async { Ok(handler.execute(command, content, events).await) };
            let write = async {
                loop {
                    let event = match timeout(ALIVE_INTERVAL, receiver.recv()).await {
                        Ok(Some(event)) => event,
                        Ok(None) => return Ok::<_, std::io::Error>(()),
                        Err(_) => Event::Alive,
                    };
                    send(&mut writer, &event, send_timeout).await?;
                }
            };
            // The command is cancelled if the client disconnects or stops reading.
            tokio::select! {
                finished = async { tokio::try_join!(run, write) } => finished.ok().map(|(result, ())| result),
                () = receive(&mut reader, input) => None,
            }
        }
        Ok(None) => None,
        Err(failure) => Some(Err(failure)),
    };
    if let Some(result) = result {
        let event = result.map_or_else(Event::Failed, |()| Event::Done);
        let _ = send(&mut writer, &event, send_timeout).await;
    }
}

/// Returns the failure of a command that requires another value of a setting than the node has.
fn other_value(required: &BTreeMap<String, String>, node: &BTreeMap<String, String>) -> Option<Failure> {
    let (key, _) = required.iter().find(|(key, value)| node.get(*key) != Some(value))?;
    Some(Failure::usage(format!(
        "--set {key}: the running node has another value, which a command cannot change; change its configuration and \
         restart it, or stop it"
    )))
}

/// Sends an event. Fails if the client is gone or stops reading.
async fn send(writer: &mut Writer, event: &Event, limit: Duration) -> std::io::Result<()> {
    let line = serde_json::to_string(event).unwrap_or_else(|error| {
        let failure = Failure::failed(format!("cannot serialize an event: {error}"));
        serde_json::to_string(&Event::Failed(failure)).expect("a failure serializes")
    });
    timeout(limit, writer.send(line)).await?.map_err(std::io::Error::other)
}

/// Receives the command. Returns `None` if the client disconnects.
async fn command(reader: &mut Reader, node: &BTreeMap<String, String>) -> Result<Option<Envelope>, Failure> {
    match timeout(RECEIVE_TIMEOUT, reader.next()).await {
        Ok(Some(Ok(line))) => match serde_json::from_str::<Envelope>(&line) {
            Ok(envelope) if envelope.version == CONTROL_VERSION => {
                other_value(&envelope.settings, node).map_or(Ok(Some(envelope)), Err)
            }
            _ => Err(Failure::failed(
                "the running node has another version than this program; restart the node, or use the program of its version",
            )),
        },
        Ok(Some(Err(error))) => Err(Failure::failed(format!("cannot read the command: {error}"))),
        Ok(None) => Ok(None),
        Err(_) => Err(Failure::failed("timeout while waiting for a command")),
    }
}

/// Passes the content from the client on, until the client disconnects.
async fn receive(reader: &mut Reader, input: mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut input = Some(input);
    while let Some(Ok(line)) = reader.next().await {
        let Some(sender) = &input else { continue };
        let is_end = line.is_empty();
        // A command without content does not receive it.
        if sender.send(STANDARD.decode(line).map_err(io::Error::other)).await.is_err() || is_end {
            input = None;
        }
    }
}
