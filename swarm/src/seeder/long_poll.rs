//! Long polling of `have`: the reply is delayed until the pieces of the file change.
//!
//! Changes are collected for a short time, which grows with the size of the reply and the number of waiting connections,
//! so that bitmaps never cost more than pieces. The number of waiting requests per connection is limited; further requests
//! are answered at once, as by a peer that does not support long polling.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::library::file::LibraryFile;
use enjambre_core::protocol::message::HaveWait;
use enjambre_core::{ConnectionId, ReplySink, TransportError};

const MAX_WAIT: Duration = Duration::from_secs(10);
const MAX_PER_CONNECTION: usize = 8;
/// Interval of the check whether the connection is still open.
const CONNECTION_CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// How long changes are collected: a minimum, an increment for each waiting connection and each KiB of the reply, and a
/// maximum.
const COLLECT: Duration = Duration::from_millis(15);
const COLLECT_INCREMENT: Duration = Duration::from_millis(1);
const MAX_COLLECT: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct LongPoll {
    waiting: Mutex<HashMap<ConnectionId, usize>>,
}

/// A waiting request. Ends when dropped.
struct Waiter<'a> {
    poll: &'a LongPoll,
    connection: ConnectionId,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.poll.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.connection) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.connection);
            }
        }
    }
}

impl LongPoll {
    /// Registers a waiting request and returns the number of waiting connections, or `None` if the connection has too many
    /// waiting requests.
    fn register(&self, connection: ConnectionId) -> Option<(Waiter<'_>, usize)> {
        let mut waiting = self.waiting.lock();
        let count = waiting.entry(connection).or_default();
        if *count >= MAX_PER_CONNECTION {
            return None;
        }
        *count += 1;
        let connections = waiting.len();
        drop(waiting);
        Some((Waiter { poll: self, connection }, connections))
    }

    /// Waits until the number of pieces differs from the known number or the requested time is over. Fails if the
    /// connection is closed.
    pub(super) async fn until_changed(
        &self,
        file: &LibraryFile,
        wait: HaveWait,
        connection: ConnectionId,
        sink: &mut dyn ReplySink,
    ) -> Result<(), TransportError> {
        if file.is_complete() {
            return Ok(());
        }
        let Some((_waiter, connections)) = self.register(connection) else { return Ok(()) };
        let now = Instant::now();
        let until = now + Duration::from_millis(wait.timeout_ms).min(MAX_WAIT);
        let kib = file.layout().count() / (8 * 1024);
        let increments = u32::try_from(connections).unwrap_or(u32::MAX).saturating_add(kib);
        let collect = (COLLECT + COLLECT_INCREMENT.saturating_mul(increments)).min(MAX_COLLECT);
        loop {
            let check = until.min(Instant::now() + CONNECTION_CHECK_INTERVAL);
            let has_changed = timeout_at(check, file.has_other_than(wait.known)).await.is_ok();
            // Completion is reported without delay.
            if file.is_complete() || (!has_changed && check == until) {
                return Ok(());
            }
            if has_changed {
                break;
            }
            sink.reserve(0).await?;
        }
        sleep_until(until.min(now + collect)).await;
        Ok(())
    }
}
