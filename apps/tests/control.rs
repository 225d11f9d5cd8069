//! The control protocol over a real socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use enjambre::control::client::{Outcome, attach};
use enjambre::control::message::{Command, Event, Events, Execute, MAX_LINE};
use enjambre::control::{server, socket};
use enjambre::failure::{Failure, Status};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// `library` gives three warnings, `status` fails, `verify` runs until it is cancelled.
#[derive(Default)]
struct Handler {
    started: Notify,
    cancelled: Arc<Notify>,
}

struct TellWhenDropped(Arc<Notify>);

impl Drop for TellWhenDropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[async_trait]
impl Execute for Handler {
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure> {
        match command {
            Command::Library => {
                for number in 0..3 {
                    events.warn(number.to_string()).await;
                }
                Ok(())
            }
            Command::Verify { .. } => {
                let _guard = TellWhenDropped(Arc::clone(&self.cancelled));
                self.started.notify_one();
                std::future::pending().await
            }
            _ => Err(Failure::new(Status::NotFound, "there is nothing")),
        }
    }
}

struct Owner {
    folder: TempDir,
    handler: Arc<Handler>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Owner {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = socket::listen(&folder.path().canonicalize().unwrap()).unwrap();
        let (handler, stop) = (Arc::new(Handler::default()), CancellationToken::new());
        let task = tokio::spawn(server::serve(listener, Arc::new(Arc::clone(&handler)), stop.clone()));
        Self { folder, handler, stop, task }
    }

    async fn run(&self, command: Command) -> (Vec<Event>, Outcome) {
        let mut events = Vec::new();
        let outcome =
            attach(self.folder.path()).await.unwrap().run(command, &mut |event| events.push(event)).await;
        (events, outcome)
    }

    async fn raw(&self, bytes: &[u8]) -> String {
        let path = socket::path(&self.folder.path().canonicalize().unwrap());
        let mut stream = UnixStream::connect(path).await.unwrap();
        // The owner may close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }
}

#[tokio::test]
async fn events_come_in_order_and_the_end_is_told() {
    let owner = Owner::start();
    let (events, outcome) = owner.run(Command::Library).await;
    let expected: Vec<_> = (0..3).map(|n| Event::Warning { message: n.to_string() }).collect();
    assert_eq!((events, outcome), (expected, Outcome::Ended(Ok(()))));
    let (events, outcome) = owner.run(Command::Status).await;
    assert!(events.is_empty());
    let Outcome::Ended(Err(failure)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure, Failure::not_found("there is nothing"));
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_command() {
    let owner = Owner::start();
    let attached = attach(owner.folder.path()).await.unwrap();
    let mut show = |_| {};
    tokio::select! {
        outcome = attached.run(Command::Verify { query: None }, &mut show) => panic!("{outcome:?}"),
        () = owner.handler.started.notified() => {}
    }
    owner.handler.cancelled.notified().await;
}

#[tokio::test]
async fn an_owner_that_stops_lets_its_clients_know() {
    let owner = Owner::start();
    let (result, ()) = tokio::join!(owner.run(Command::Verify { query: None }), async {
        owner.handler.started.notified().await;
        owner.stop.cancel();
    });
    assert_eq!(result.1, Outcome::OwnerGone);
    owner.task.await.unwrap();
    assert!(attach(owner.folder.path()).await.is_err(), "a socket that was left behind is not an owner");
}

#[tokio::test]
async fn what_is_no_command_is_refused_and_the_owner_goes_on() {
    let owner = Owner::start();
    for line in ["\n", "{}\n", "not json\n", "{\"version\":999,\"command\":\"library\"}\n"] {
        let answer = owner.raw(line.as_bytes()).await;
        assert!(answer.contains("\"failed\"") && answer.contains("another version"), "{line:?}: {answer}");
    }
    let endless = vec![b'x'; MAX_LINE + 100_000];
    assert!(owner.raw(&endless).await.contains("\"failed\""));
    assert_eq!(owner.run(Command::Library).await.0.len(), 3);
}
