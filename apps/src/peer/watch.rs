//! The events of a running peer.

use std::time::Duration;

use enjambre_control::{Event, Events};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

use super::Node;
use crate::node_commands::watch;

/// Time for which changes of the library are collected.
const LIBRARY_INTERVAL: Duration = Duration::from_millis(500);
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

impl Node {
    /// Sends events of changes until it is cancelled.
    pub(super) async fn watch(&self, events: &Events) {
        tokio::join!(
            self.watch_library(events),
            self.watch_downloads(events),
            watch(events, STATUS_INTERVAL, || async { self.status().await.ok().map(Event::Status) }),
        );
    }

    async fn watch_library(&self, events: &Events) {
        let mut changes = self.services.library.events();
        while !matches!(changes.recv().await, Err(RecvError::Closed)) {
            sleep(LIBRARY_INTERVAL).await;
            changes = changes.resubscribe();
            events.send(Event::LibraryChanged).await;
        }
    }
}
