//! The control protocol over a Unix socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_control::{Command, Event, Events, Execute, Failure, Input, Output, next_part};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::connect;
use super::message::{CONTROL_VERSION, Envelope, MAX_LINE};
use super::{server, socket};

/// `library` sends three warnings, `publish` sends its input as a warning, `get` sends more content than a socket holds,
/// `status` fails, and `verify` runs until it is cancelled.
#[derive(Default)]
struct Handler {
    started: Notify,
    cancelled: Arc<Notify>,
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[async_trait]
impl Execute for Handler {
    async fn execute(&self, command: Command, mut input: Input, events: Events) -> Result<(), Failure> {
        match command {
            Command::Library => {
                for number in 0..3 {
                    events.warn(number.to_string()).await;
                }
                Ok(())
            }
            Command::Get { .. } => {
                for _ in 0..64 {
                    events.send(Event::Content { data: "x".repeat(64 << 10) }).await;
                }
                Ok(())
            }
            Command::PublishInput { .. } => {
                let mut received = Vec::new();
                loop {
                    match next_part(&mut input).await? {
                        part if part.is_empty() => break,
                        part => received.extend(part),
                    }
                }
                events.warn(String::from_utf8(received).unwrap()).await;
                Ok(())
            }
            Command::Verify { .. } => {
                let _guard = NotifyOnDrop(Arc::clone(&self.cancelled));
                self.started.notify_one();
                std::future::pending().await
            }
            _ => Err(Failure::not_found("not found")),
        }
    }
}

struct Server {
    folder: TempDir,
    handler: Arc<Handler>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = socket::listen(&folder.path().canonicalize().unwrap(), false).unwrap();
        let (handler, stop) = (Arc::new(Handler::default()), CancellationToken::new());
        let settings = BTreeMap::from([("limits.upload".to_owned(), "\"1MB/s\"".to_owned())]);
        let task = tokio::spawn(server::serve(listener, Arc::clone(&handler) as _, settings, stop.clone()));
        Self { folder, handler, stop, task }
    }

    async fn run(&self, command: Command) -> (Vec<Event>, Option<Result<(), Failure>>) {
        let mut events = Vec::new();
        let outcome =
            connect(self.folder.path()).await.unwrap().run(command, &mut |event| events.push(event)).await;
        (events, outcome)
    }

    async fn raw(&self, bytes: &[u8]) -> String {
        let path = socket::path(&self.folder.path().canonicalize().unwrap());
        let mut stream = UnixStream::connect(path).await.unwrap();
        // The server can close the connection before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply).await;
        reply
    }
}

#[tokio::test]
async fn events_arrive_in_order() {
    let server = Server::start();
    let (events, outcome) = server.run(Command::Library).await;
    let expected: Vec<_> = (0..3).map(|n| Event::Warning { message: n.to_string() }).collect();
    assert_eq!((events, outcome), (expected, Some(Ok(()))));
    let (events, outcome) = server.run(Command::Status).await;
    assert!(events.is_empty());
    assert_eq!(outcome, Some(Err(Failure::not_found("not found"))));
}

#[tokio::test]
async fn setting_that_the_node_does_not_have_is_rejected() {
    let server = Server::start();
    for (key, value, is_same) in [
        ("limits.upload", "\"1MB/s\"", true),
        ("limits.upload", "\"2MB/s\"", false),
        ("download.provider_timeout", "\"1s\"", false),
    ] {
        let settings = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let connection = connect(server.folder.path()).await.unwrap().with_settings(settings);
        let outcome = connection.run(Command::Library, &mut |_| {}).await.unwrap();
        assert_eq!(outcome.is_ok(), is_same, "{key}={value}");
        assert!(is_same || outcome.unwrap_err().message.contains(key));
    }
}

#[tokio::test(start_paused = true)]
async fn silent_node_counts_as_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let _frozen = socket::listen(&folder.path().canonicalize().unwrap(), false).unwrap();
    let connection = connect(folder.path()).await.unwrap();
    let start = Instant::now();
    let failure = connection.run(Command::Status, &mut |_| {}).await.unwrap().unwrap_err();
    assert!(failure.message.contains("does not respond"), "{failure}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn long_command_without_events_is_not_cancelled() {
    let server = Server::start();
    let connection = connect(server.folder.path()).await.unwrap();
    let mut show = |event| panic!("{event:?}");
    let command = connection.run(Command::Verify { query: None }, &mut show);
    tokio::time::timeout(Duration::from_secs(120), command).await.expect_err("the command is running");
}

#[tokio::test(start_paused = true)]
async fn consumer_of_content_can_pause() {
    let server = Server::start();
    let output = Output::Client;
    let command = Command::Get { queries: Vec::new(), output, force: false, sync: false };
    let envelope = Envelope { version: CONTROL_VERSION, command, settings: BTreeMap::new() };
    let mut stream =
        UnixStream::connect(socket::path(&server.folder.path().canonicalize().unwrap())).await.unwrap();
    stream.write_all(format!("{}\n", serde_json::to_string(&envelope).unwrap()).as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert_eq!(reply.matches("\"content\"").count(), 64);
    assert!(reply.contains("\"done\""));
}

#[tokio::test]
async fn input_arrives_completely_and_its_error_fails_the_command() {
    let server = Server::start();
    for error in [None, Some("the pipe broke"), Some("incomplete")] {
        let (sender, input) = mpsc::channel(2);
        let connection = connect(server.folder.path()).await.unwrap().with_input(input);
        let send = async move {
            for part in ["a", "b"].repeat(1000) {
                sender.send(Ok(part.into())).await.unwrap();
            }
            match error {
                None => sender.send(Ok(Vec::new())).await.unwrap(),
                // The sender is dropped, as after a panic.
                Some("incomplete") => {}
                Some(error) => sender.send(Err(std::io::Error::other(error))).await.unwrap(),
            }
        };
        let command = Command::PublishInput { name: "text".parse().unwrap(), size: None, pin: false };
        let mut events = Vec::new();
        let mut show = |event| events.push(event);
        let (outcome, ()) = tokio::join!(connection.run(command, &mut show), send);
        match error {
            None => assert_eq!(events, [Event::Warning { message: "ab".repeat(1000) }]),
            Some(error) => assert!(outcome.unwrap().unwrap_err().message.contains(error)),
        }
    }
}

#[tokio::test]
async fn disconnect_cancels_the_command() {
    let server = Server::start();
    let connection = connect(server.folder.path()).await.unwrap();
    let mut show = |_| {};
    tokio::select! {
        outcome = connection.run(Command::Verify { query: None }, &mut show) => panic!("{outcome:?}"),
        () = server.handler.started.notified() => {}
    }
    server.handler.cancelled.notified().await;
}

#[tokio::test]
async fn shutdown_closes_connections() {
    let server = Server::start();
    let (result, ()) = tokio::join!(server.run(Command::Verify { query: None }), async {
        server.handler.started.notified().await;
        server.stop.cancel();
    });
    assert_eq!(result.1, None);
    server.task.await.unwrap();
    assert!(connect(server.folder.path()).await.is_err(), "no process listens on the stale socket");
}

#[tokio::test]
async fn malformed_command_is_rejected() {
    let server = Server::start();
    for line in ["\n", "{}\n", "not json\n", "{\"version\":999,\"command\":\"library\"}\n"] {
        let answer = server.raw(line.as_bytes()).await;
        assert!(answer.contains("\"failed\"") && answer.contains("another version"), "{line:?}: {answer}");
    }
    let endless = vec![b'x'; MAX_LINE + 100_000];
    assert!(server.raw(&endless).await.contains("\"failed\""));
    assert_eq!(server.run(Command::Library).await.0.len(), 3);
}
