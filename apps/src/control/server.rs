//! The answering end: one command per connection.

use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, FramedWrite, LinesCodec};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::message::{CONTROL_VERSION, Envelope, Event, Events, Execute, MAX_LINE};
use crate::failure::Failure;

/// Commands that run at the same time; further clients wait to be accepted.
const MAX_CLIENTS: usize = 64;
/// How long a client may take to say what it wants.
const ASKING: Duration = Duration::from_secs(10);
/// How long a client may take to read an event.
const READING: Duration = Duration::from_secs(60);

/// Runs the commands that come over the socket until `stop`, then drops those under way: their clients see the
/// connection close and look for a new owner.
pub async fn serve(listener: UnixListener, handler: Arc<dyn Execute>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await.expect("nobody closes the semaphore");
                (listener.accept().await, slot)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), slot) => {
                let (handler, stop) = (Arc::clone(&handler), stop.clone());
                tasks.spawn(async move {
                    tokio::select! { () = stop.cancelled() => {} () = answer(stream, &*handler) => {} }
                    drop(slot);
                });
            }
            (Err(error), _) => {
                // Out of file descriptors, most likely: others have to finish first.
                tracing::warn!(%error, "a command could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

type Lines = FramedRead<OwnedReadHalf, LinesCodec>;

async fn answer(stream: UnixStream, handler: &dyn Execute) {
    let (reader, writer) = stream.into_split();
    let mut reader = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE));
    let mut writer = FramedWrite::new(writer, LinesCodec::new());
    let (events, mut receiver) = Events::channel();
    let run = async {
        let result = match command(&mut reader).await {
            Ok(Some(Envelope { command, .. })) => {
                tokio::select! {
                    result = handler.execute(command, events) => result,
                    () = gone(&mut reader) => return None,
                }
            }
            Ok(None) => return None,
            Err(failure) => {
                drop(events);
                Err(failure)
            }
        };
        Some(match result {
            Ok(()) => Event::Done,
            Err(failure) => Event::Failed(failure),
        })
    };
    let write = async {
        while let Some(event) = receiver.recv().await {
            let line = serde_json::to_string(&event).unwrap_or_else(|error| {
                let failure = Failure::failed(format!("an event cannot be written: {error}"));
                serde_json::to_string(&Event::Failed(failure)).expect("plain text can be written")
            });
            if !matches!(timeout(READING, writer.send(line)).await, Ok(Ok(()))) {
                return None;
            }
        }
        Some(writer)
    };
    // A client that does not read stops its command: `write` ends first, and `run` is dropped.
    tokio::pin!(run, write);
    let (last, writer) = tokio::select! {
        last = &mut run => (last, write.await),
        writer = &mut write => match writer {
            Some(writer) => (run.await, Some(writer)),
            None => return,
        },
    };
    if let (Some(last), Some(mut writer)) = (last, writer) {
        let line = serde_json::to_string(&last).expect("the last event is plain text");
        let _ = timeout(READING, writer.send(line)).await;
    }
}

/// The command; none if the client went away.
async fn command(reader: &mut Lines) -> Result<Option<Envelope>, Failure> {
    match timeout(ASKING, reader.next()).await {
        Ok(Some(Ok(line))) => match serde_json::from_str::<Envelope>(&line) {
            Ok(envelope) if envelope.version == CONTROL_VERSION => Ok(Some(envelope)),
            _ => Err(Failure::failed(
                "the running peer is of another version than this program; restart it, or use its program",
            )),
        },
        Ok(Some(Err(error))) => Err(Failure::failed(format!("the command cannot be read: {error}"))),
        Ok(None) => Ok(None),
        Err(_) => Err(Failure::failed("no command came")),
    }
}

/// Waits until the client goes away. It has nothing more to say.
async fn gone(reader: &mut Lines) {
    while let Some(Ok(_)) = reader.next().await {}
}
