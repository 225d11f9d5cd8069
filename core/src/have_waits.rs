//! Answers to `have` that wait until there is something new, so that nobody has to ask again and again.
//!
//! Changes are collected for a moment, the longer the more bytes an answer takes and the more are waiting: what is said about
//! pieces must not cost more than the pieces do. Only so many wait on one connection; who asks
//! beyond that is answered at once, as by a peer that does not know of waiting.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::library::file::LibraryFile;
use crate::protocol::message::HaveWait;
use crate::transport::error::TransportError;
use crate::transport::{ConnectionId, ReplySink};

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(10);
/// Answers that wait on one connection.
const PER_CONNECTION: usize = 8;
/// How often it is looked at whether the connection is still there.
const LOOK: Duration = Duration::from_millis(200);
/// How long changes are collected: at least this long, and so long for each that waits and for each KiB of the answer.
const COLLECT: Duration = Duration::from_millis(15);
const COLLECT_EACH: Duration = Duration::from_millis(1);
const LONGEST_COLLECT: Duration = Duration::from_millis(500);

/// The answers that wait.
#[derive(Debug, Default)]
pub(crate) struct HaveWaits {
    waiting: Mutex<HashMap<ConnectionId, usize>>,
}

/// One of those that wait.
struct Place<'a> {
    waits: &'a HaveWaits,
    connection: ConnectionId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waits.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.connection) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.connection);
            }
        }
    }
}

impl HaveWaits {
    fn enter(&self, connection: ConnectionId) -> Option<(Place<'_>, usize)> {
        let mut waiting = self.waiting.lock();
        let count = waiting.entry(connection).or_default();
        if *count >= PER_CONNECTION {
            return None;
        }
        *count += 1;
        let all = waiting.len();
        drop(waiting);
        Some((Place { waits: self, connection }, all))
    }

    /// Returns when the file has another number of pieces than the asker knows of, at the latest after the wait that it
    /// asked for. An error means that the connection is gone.
    pub(crate) async fn until_changed(
        &self,
        file: &LibraryFile,
        wait: HaveWait,
        connection: ConnectionId,
        sink: &mut dyn ReplySink,
    ) -> Result<(), TransportError> {
        if file.is_complete() {
            return Ok(());
        }
        let Some((_place, others)) = self.enter(connection) else { return Ok(()) };
        let now = Instant::now();
        let until = now + Duration::from_millis(wait.millis).min(LONGEST);
        let kib = file.layout().count() / (8 * 1024);
        let weight = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(kib);
        let collect = (COLLECT + COLLECT_EACH.saturating_mul(weight)).min(LONGEST_COLLECT);
        loop {
            let look = until.min(Instant::now() + LOOK);
            let news = timeout_at(look, file.has_other_than(wait.known)).await.is_ok();
            // The whole is worth saying at once.
            if file.is_complete() || (!news && look == until) {
                return Ok(());
            }
            if news {
                break;
            }
            sink.reserve(0).await?;
        }
        sleep_until(until.min(now + collect)).await;
        Ok(())
    }
}
