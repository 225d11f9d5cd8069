//! The commands that peers and trackers execute in the same way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_control::{Command, Event, Events, Execute, Failure, Input, LogTail, Settings};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::logging::Log;

/// Minimum time between two events of [`Command::Watch`] with lines of the log.
const LOG_INTERVAL: Duration = Duration::from_millis(500);

/// Executes the commands about the process, and passes the others on to the node.
pub(crate) struct NodeCommands {
    node: Arc<dyn Execute>,
    log: Arc<Log>,
    settings: BTreeMap<String, Value>,
}

impl NodeCommands {
    /// `settings` are the effective settings without passwords.
    pub(crate) fn new(node: Arc<dyn Execute>, log: &Arc<Log>, settings: BTreeMap<String, Value>) -> Self {
        Self { node, log: Arc::clone(log), settings }
    }

    /// Sends lines of the log as they are written.
    async fn watch_log(&self, events: &Events) {
        let mut seen = self.log.lines.count();
        loop {
            let lines = self.log.lines.next(&mut seen).await;
            events.send(Event::LogTail(LogTail { lines })).await;
            sleep(LOG_INTERVAL).await;
        }
    }
}

#[async_trait]
impl Execute for NodeCommands {
    async fn execute(&self, command: Command, input: Input, events: Events) -> Result<(), Failure> {
        match command {
            Command::Settings => {
                events.send(Event::Settings(Settings { settings: self.settings.clone() })).await;
                Ok(())
            }
            Command::LogTail { limit } => {
                events.send(Event::LogTail(LogTail { lines: self.log.lines.recent(limit) })).await;
                Ok(())
            }
            Command::Log { level } => self.log.execute(level, &events).await,
            Command::Watch => tokio::select! {
                result = self.node.execute(Command::Watch, input, events.clone()) => result,
                () = self.watch_log(&events) => Ok(()),
            },
            command => self.node.execute(command, input, events).await,
        }
    }
}

/// Sends an event whenever it differs from the previous one. Reads it once per period, but for at most a tenth of the time.
pub(crate) async fn watch<F: Future<Output = Option<Event>>>(
    events: &Events,
    period: Duration,
    read: impl Fn() -> F,
) {
    let mut sent = None;
    loop {
        let start = Instant::now();
        if let Some(event) = read().await
            && sent.as_ref() != Some(&event)
        {
            sent = Some(event.clone());
            events.send(event).await;
        }
        sleep(period.max(start.elapsed() * 9)).await;
    }
}
