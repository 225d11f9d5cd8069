//! The bookkeeping of the asking side: which calls are under way on one connection, and how long they wait.
//!
//! Every transport needs the same: replies matched by id, calls that were dropped forgotten, all failed at once when
//! the connection is lost, and the two kinds of [`Deadline`]. It moves no bytes itself.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::envelope::{self, RequestId};
use super::error::TransportError;
use super::{Deadline, Message};
use crate::machine::HashMap;

/// When something was last heard on a connection. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct Activity {
    base: Instant,
    /// Microseconds after `base`.
    last: Arc<AtomicU64>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { base: Instant::now(), last: Arc::default() }
    }
}

impl Activity {
    /// Notes that bytes of a reply came just now.
    pub fn heard(&self) {
        let micros = u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last.fetch_max(micros, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.base + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    /// For how long nothing was heard; at first, since the beginning.
    pub fn silent_for(&self) -> Duration {
        self.last().elapsed()
    }

    /// Runs `work` until the deadline; `None` when that came first.
    pub async fn within<T>(&self, deadline: Deadline, work: impl Future<Output = T>) -> Option<T> {
        let begin = Instant::now();
        let expired = async {
            match deadline {
                Deadline::Total(limit) => tokio::time::sleep(limit).await,
                Deadline::Silence(limit) => loop {
                    let until = begin.max(self.last()) + limit;
                    if until <= Instant::now() {
                        break;
                    }
                    tokio::time::sleep_until(until).await;
                },
            }
        };
        tokio::select! {
            biased;
            done = work => Some(done),
            () = expired => None,
        }
    }
}

type Reply = Result<Message, TransportError>;

#[derive(Debug, Default)]
struct State {
    /// Whether any call got its reply, or the end was an orderly one.
    good: bool,
    /// By id, with a serial number that tells two calls with one id apart.
    pending: HashMap<RequestId, (u64, oneshot::Sender<Reply>)>,
    serial: u64,
    failed: bool,
}

/// The calls under way over one established connection.
#[derive(Debug, Default)]
pub struct Calls {
    state: Mutex<State>,
    unmatched: AtomicU64,
    unmatched_in_a_row: AtomicU64,
}

impl Calls {
    /// No calls yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Registers a call before it is sent; `None` after [`Calls::fail`]. An earlier call with the same id is over.
    pub fn begin(self: &Arc<Self>, id: RequestId) -> Option<PendingCall> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if state.failed {
            return None;
        }
        state.serial += 1;
        let serial = state.serial;
        state.pending.insert(id, (serial, sender));
        Some(PendingCall { calls: Arc::clone(self), id, serial, receiver })
    }

    /// Hands a reply to the call it belongs to. One that belongs to none is dropped and counted; so is one
    /// whose id cannot be read.
    pub fn deliver(&self, reply: Message) {
        let id = envelope::read(&reply.header).and_then(|envelope| envelope.id);
        self.deliver_to(id, reply);
    }

    /// The same where the id in the reply's header was read already.
    pub fn deliver_to(&self, id: Option<RequestId>, reply: Message) {
        let call = id.and_then(|id| {
            let mut state = self.state.lock();
            let call = state.pending.remove(&id);
            state.good |= call.is_some();
            call
        });
        // A call that was dropped at this very moment makes the reply a late one, too.
        if call.is_none_or(|(_, sender)| sender.send(Ok(reply)).is_err()) {
            self.unmatched.fetch_add(1, Ordering::Relaxed);
            self.unmatched_in_a_row.fetch_add(1, Ordering::Relaxed);
        } else {
            self.unmatched_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Whether any call got its reply, or the end came with [`Calls::retire`]: then dialling again is likely to work.
    pub fn was_good(&self) -> bool {
        self.state.lock().good
    }

    /// Whether a call waits for the reply with this id: then its payload is worth keeping.
    pub fn is_waiting(&self, id: RequestId) -> bool {
        self.state.lock().pending.contains_key(&id)
    }

    /// Whether any call is under way.
    pub fn is_busy(&self) -> bool {
        !self.state.lock().pending.is_empty()
    }

    /// Whether no new call can begin.
    pub fn is_over(&self) -> bool {
        self.state.lock().failed
    }

    /// Lets no new call begin, unless one is under way; whether it did that.
    pub fn retire(&self) -> bool {
        let mut state = self.state.lock();
        if state.pending.is_empty() {
            (state.failed, state.good) = (true, true);
        }
        state.failed
    }

    /// Fails all calls under way, and from now on every new one.
    pub fn fail(&self, error: impl Fn() -> TransportError) {
        let pending = {
            let mut state = self.state.lock();
            state.failed = true;
            std::mem::take(&mut state.pending)
        };
        for (_, sender) in pending.into_values() {
            // Who is gone needs no error.
            let _ = sender.send(Err(error()));
        }
    }

    /// How many replies came that nobody waited for since the last that somebody did wait for.
    pub fn unmatched_in_a_row(&self) -> u64 {
        self.unmatched_in_a_row.load(Ordering::Relaxed)
    }

    /// How many replies came that nobody waited for (any more).
    pub fn unmatched(&self) -> u64 {
        self.unmatched.load(Ordering::Relaxed)
    }
}

/// A call that was registered; dropping it forgets the call.
#[derive(Debug)]
pub struct PendingCall {
    calls: Arc<Calls>,
    id: RequestId,
    serial: u64,
    receiver: oneshot::Receiver<Reply>,
}

impl PendingCall {
    /// The reply. `None` when the call was replaced by one with the same id.
    pub async fn reply(&mut self) -> Option<Reply> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        let mut state = self.calls.state.lock();
        if state.pending.get(&self.id).is_some_and(|(serial, _)| *serial == self.serial) {
            state.pending.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn reply(id: u64) -> Message {
        let header = envelope::malformed_reply(Some(RequestId(id)), "");
        Message { header, ..Message::default() }
    }

    #[tokio::test]
    async fn a_reply_finds_its_call_and_a_late_one_is_counted() {
        let calls = Calls::new();
        let (mut one, two) = (calls.begin(RequestId(1)).unwrap(), calls.begin(RequestId(2)).unwrap());
        drop(two);
        assert!(calls.is_waiting(RequestId(1)) && !calls.is_waiting(RequestId(2)));
        calls.deliver(reply(2));
        calls.deliver(reply(1));
        calls.deliver(Message::default());
        assert_eq!(one.reply().await.unwrap().unwrap(), reply(1));
        assert_eq!(calls.unmatched(), 2);
    }

    #[tokio::test]
    async fn a_call_whose_id_is_used_again_does_not_take_the_other_s_reply() {
        let calls = Calls::new();
        let mut old = calls.begin(RequestId(1)).unwrap();
        let mut new = calls.begin(RequestId(1)).unwrap();
        assert!(old.reply().await.is_none());
        drop(old);
        calls.deliver(reply(1));
        assert!(new.reply().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn all_calls_fail_at_once_and_later_ones_are_not_begun() {
        let calls = Calls::new();
        let mut call = calls.begin(RequestId(1)).unwrap();
        calls.fail(|| TransportError::Closed);
        assert!(matches!(call.reply().now_or_never(), Some(Some(Err(TransportError::Closed)))));
        assert!(calls.begin(RequestId(2)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_byte_and_total_from_the_start() {
        let second = Duration::from_secs(1);
        let activity = Activity::default();
        let begin = Instant::now();
        let noise = async {
            for _ in 0..5 {
                tokio::time::sleep(second).await;
                activity.heard();
            }
            std::future::pending::<()>().await;
        };
        assert!(activity.within(Deadline::Silence(2 * second), noise).await.is_none());
        assert_eq!(begin.elapsed().as_secs(), 7);
        let busy = async {
            loop {
                tokio::time::sleep(second / 2).await;
                activity.heard();
            }
        };
        assert!(activity.within(Deadline::Total(2 * second), busy).await.map(|(): ()| ()).is_none());
        assert_eq!(begin.elapsed().as_secs(), 9);
    }
}
