//! The execution of commands: their input, and the sink for their events.

use std::io;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::command::Command;
use crate::event::Event;
use crate::failure::Failure;

/// Maximum length of a part of content, in bytes.
pub const CONTENT_BYTES: usize = 64 * 1024;

/// The content that the client sends with a command. An empty part is the end; without it, the content is incomplete.
///
/// On the socket, each line after the command is a part in Base64.
pub type Input = mpsc::Receiver<io::Result<Vec<u8>>>;

/// Returns the input of a command without content.
pub fn no_input() -> Input {
    let (sender, input) = mpsc::channel(1);
    let _ = sender.try_send(Ok(Vec::new()));
    input
}

/// Returns the next part of the content, which is empty at its end.
pub async fn next_part(input: &mut Input) -> io::Result<Vec<u8>> {
    let incomplete = || Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the content is incomplete"));
    input.recv().await.unwrap_or_else(incomplete)
}

/// The sink for the events of a running command.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    /// Creates a bounded channel for events.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self(sender), receiver)
    }

    /// Sends an event. Waits while the channel is full.
    pub async fn send(&self, event: Event) {
        // If the receiver is gone, the command is about to be cancelled.
        let _ = self.0.send(event).await;
    }

    /// Sends an event that a later one supersedes. Drops it if the channel is full.
    pub fn progress(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    /// Reports a problem that does not stop the command.
    pub async fn warn(&self, message: impl Into<String>) {
        self.send(Event::Warning { message: message.into() }).await;
    }
}

/// Executes commands. Dropping the future cancels the command.
#[async_trait]
pub trait Execute: Send + Sync + 'static {
    /// Executes a command. The caller sends `Done` or `Failed`.
    async fn execute(&self, command: Command, input: Input, events: Events) -> Result<(), Failure>;
}

/// Runs a command in this process and passes its events to `show`.
pub async fn run_locally(
    handler: &dyn Execute,
    command: Command,
    input: Input,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    let (events, mut receiver) = Events::channel();
    let mut running = handler.execute(command, input, events);
    let result = loop {
        tokio::select! {
            biased;
            Some(event) = receiver.recv() => show(event),
            result = &mut running => break result,
        }
    };
    drop(running);
    while let Some(event) = receiver.recv().await {
        show(event);
    }
    result
}
