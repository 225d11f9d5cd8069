//! Events as they happen, as server-sent events.
//!
//! One task watches the node while there are subscribers. The last events are kept so that a client continues after a
//! short interruption.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use enjambre_control::{Command, Event, Events, Execute, no_input};
use enjambre_core::runtime;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use futures::Stream;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::node::StatusReport;
use crate::problem::Problem;

/// Number of events that are kept.
const MAX_EVENTS: u64 = 256;
/// Maximum size of these events together, in bytes. The last one is kept in any case.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Maximum number of subscribers.
const MAX_SUBSCRIBERS: usize = 32;
/// Interval of comments to subscribers without events, so that proxies keep the connection open.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Time for which events are kept without subscribers.
const LINGER: Duration = Duration::from_secs(30);
/// Delay before the node is watched again after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The events of a node.
pub(super) struct EventHub {
    commands: Arc<dyn Execute>,
    /// Distinguishes the event ids of this process from those of earlier ones.
    epoch: u64,
    events: Mutex<Kept>,
    /// The number of the next event.
    next: watch::Sender<u64>,
    subscribers: watch::Sender<usize>,
}

#[derive(Default)]
struct Kept {
    /// The last events, without gaps. The last one precedes `EventHub::next`.
    last: VecDeque<(&'static str, String)>,
    bytes: usize,
    is_watching: bool,
}

impl EventHub {
    pub(super) fn new(commands: Arc<dyn Execute>) -> Arc<Self> {
        let (events, epoch) = (Mutex::default(), SystemClock.now().get());
        let (next, subscribers) = (watch::Sender::new(1), watch::Sender::new(0));
        Arc::new(Self { commands, epoch, events, next, subscribers })
    }

    /// Returns all events from now on, or those after `last_id`.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        last_id: Option<&str>,
    ) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>> + use<>>, Problem> {
        let mut is_full = false;
        self.subscribers.send_modify(|count| {
            is_full = *count >= MAX_SUBSCRIBERS;
            *count += usize::from(!is_full);
        });
        if is_full {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many subscribers of events"));
        }
        let mut kept = self.events.lock();
        if !std::mem::replace(&mut kept.is_watching, true) {
            runtime::spawn(Arc::clone(self).watch());
        }
        let next = *self.next.borrow();
        // An unknown id precedes all events, which are therefore lost.
        let position =
            last_id.map_or(next, |id| self.parse_id(id).map_or(0, |number| number.min(next - 1) + 1));
        drop(kept);
        let subscriber = Subscriber { changes: self.next.subscribe(), hub: Arc::clone(self), position };
        let stream = futures::stream::unfold(subscriber, async |mut subscriber| {
            let event = subscriber.next().await;
            Some((Ok(event), subscriber))
        });
        Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT)))
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.epoch)
    }

    fn parse_id(&self, id: &str) -> Option<u64> {
        let (epoch, number) = id.split_once('-')?;
        number.parse().ok().filter(|_| epoch == self.epoch.to_string())
    }

    /// Watches the node while there are subscribers.
    async fn watch(self: Arc<Self>) {
        loop {
            let (events, mut receiver) = Events::channel();
            let failed = async {
                let result = self.commands.execute(Command::Watch, no_input(), events).await;
                if let Err(error) = result {
                    tracing::warn!(%error, "watching the node failed");
                }
                sleep(RETRY).await;
            };
            let forward = async {
                while let Some(event) = receiver.recv().await {
                    if let Some((name, data)) = encode(event) {
                        self.push(name, &data);
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! { () = failed => {} () = forward => {} () = self.unused() => {} }
            let mut kept = self.events.lock();
            if *self.subscribers.borrow() == 0 {
                // What happens from now on is lost, so ids before it must not be continued.
                kept.last.clear();
                kept.bytes = 0;
                kept.is_watching = false;
                self.next.send_modify(|next| *next += 1);
                return;
            }
        }
    }

    /// Waits until there have been no subscribers for a while.
    async fn unused(&self) {
        let mut subscribers = self.subscribers.subscribe();
        loop {
            // The sender is in `self`.
            let _ = subscribers.wait_for(|count| *count == 0).await;
            if timeout(LINGER, subscribers.wait_for(|count| *count > 0)).await.is_err() {
                return;
            }
        }
    }

    fn push(&self, name: &'static str, data: &Value) {
        let data = data.to_string();
        let mut kept = self.events.lock();
        kept.bytes += data.len();
        kept.last.push_back((name, data));
        while kept.last.len() as u64 > MAX_EVENTS || (kept.bytes > MAX_BYTES && kept.last.len() > 1) {
            let oldest = kept.last.pop_front().map_or(0, |(_, data)| data.len());
            kept.bytes -= oldest;
        }
        self.next.send_modify(|next| *next += 1);
    }
}

/// Returns the name and the data of an event for clients.
fn encode(event: Event) -> Option<(&'static str, Value)> {
    let (name, data) = match event {
        Event::LibraryChanged => ("library", Ok(json!({}))),
        Event::Downloads(list) => ("downloads", serde_json::to_value(list)),
        Event::LogTail(tail) => ("log", serde_json::to_value(tail)),
        event => ("status", serde_json::to_value(StatusReport::from_event(event)?)),
    };
    data.ok().map(|data| (name, data))
}

/// A client that receives events.
struct Subscriber {
    hub: Arc<EventHub>,
    changes: watch::Receiver<u64>,
    /// The number of the next event for this client.
    position: u64,
}

impl Subscriber {
    async fn next(&mut self) -> sse::Event {
        loop {
            if let Some(event) = self.poll() {
                return event;
            }
            // The sender is in the hub.
            let _ = self.changes.changed().await;
        }
    }

    /// Returns the next event if there is one.
    fn poll(&mut self) -> Option<sse::Event> {
        let kept = self.hub.events.lock();
        let next = *self.changes.borrow_and_update();
        let first = next - kept.last.len() as u64;
        if self.position < first {
            self.position = first;
            return Some(sse::Event::default().event("reset").id(self.hub.id(first - 1)).data("{}"));
        }
        let (name, data) = kept.last.get(usize::try_from(self.position - first).ok()?)?;
        let event = sse::Event::default().event(name).id(self.hub.id(self.position)).data(data);
        self.position += 1;
        Some(event)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.hub.subscribers.send_modify(|count| *count -= 1);
    }
}
