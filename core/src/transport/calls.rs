//! The outstanding calls of a connection and their deadlines.
//!
//! Matches replies to calls by id, forgets abandoned calls, and fails all calls when the connection is lost. Transfers no
//! bytes by itself.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::envelope::{self, RequestId};
use super::error::TransportError;
use super::interface::Deadline;
use super::message::Message;
use crate::runtime::HashMap;

/// The time of the last received byte of a connection. Clones share one time.
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
    /// Records that bytes of a reply have arrived.
    pub fn record(&self) {
        let micros = u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last.fetch_max(micros, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.base + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    /// The time since the last received byte, or since the creation.
    pub fn silent_for(&self) -> Duration {
        self.last().elapsed()
    }

    /// Runs `work` until the deadline. Returns `None` if the deadline comes first.
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
    /// See [`Calls::was_useful`].
    useful: bool,
    /// By id, with a serial number that distinguishes two calls with the same id.
    pending: HashMap<RequestId, (u64, oneshot::Sender<Reply>)>,
    serial: u64,
    failed: bool,
    /// The number of replies without a call since the last reply with a call.
    unmatched: u64,
}

/// The outstanding calls of an established connection.
#[derive(Debug, Default)]
pub struct Calls {
    state: Mutex<State>,
}

impl Calls {
    /// Creates an empty set of calls.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Registers a call before it is sent. Replaces a call with the same id. Returns `None` after [`Calls::fail`].
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

    /// Delivers a reply to its call. Drops a reply without a call or with an unreadable id. Returns the number of replies
    /// without a call since the last reply with a call.
    pub fn deliver(&self, reply: Message) -> u64 {
        let id = envelope::id_of(&reply.header);
        self.deliver_to(id, reply)
    }

    /// Like [`Calls::deliver`], with the id from the header of the reply.
    pub fn deliver_to(&self, id: Option<RequestId>, reply: Message) -> u64 {
        let mut state = self.state.lock();
        let Some((_, sender)) = id.and_then(|id| state.pending.remove(&id)) else {
            state.unmatched += 1;
            return state.unmatched;
        };
        (state.useful, state.unmatched) = (true, 0);
        drop(state);
        // Fails if the call is abandoned in this moment.
        let _ = sender.send(Ok(reply));
        0
    }

    /// Returns whether any call got its reply, or [`Calls::retire`] ended the calls. A new connection then probably succeeds.
    pub fn was_useful(&self) -> bool {
        self.state.lock().useful
    }

    /// Returns whether a call waits for the reply with this id. The payload of any other reply can be discarded.
    pub fn is_waiting(&self, id: RequestId) -> bool {
        self.state.lock().pending.contains_key(&id)
    }

    /// Returns whether any call is outstanding.
    pub fn is_busy(&self) -> bool {
        !self.state.lock().pending.is_empty()
    }

    /// Returns whether new calls are refused.
    pub fn is_over(&self) -> bool {
        self.state.lock().failed
    }

    /// Refuses new calls, unless a call is outstanding. Returns whether new calls are refused.
    pub fn retire(&self) -> bool {
        let mut state = self.state.lock();
        if state.pending.is_empty() {
            (state.failed, state.useful) = (true, true);
        }
        state.failed
    }

    /// Fails all outstanding calls and refuses new ones.
    pub fn fail(&self, error: impl Fn() -> TransportError) {
        let pending = {
            let mut state = self.state.lock();
            state.failed = true;
            std::mem::take(&mut state.pending)
        };
        for (_, sender) in pending.into_values() {
            let _ = sender.send(Err(error()));
        }
    }
}

/// A registered call. Dropping it abandons the call.
#[derive(Debug)]
pub struct PendingCall {
    calls: Arc<Calls>,
    id: RequestId,
    serial: u64,
    receiver: oneshot::Receiver<Reply>,
}

impl PendingCall {
    /// Waits for the reply. Returns `None` if another call with the same id replaced this one.
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
        let header = envelope::encode_reply(Some(RequestId(id)), &"done");
        Message { header, ..Message::default() }
    }

    #[tokio::test]
    async fn reply_reaches_its_call_and_late_reply_is_counted() {
        let calls = Calls::new();
        let (mut one, two) = (calls.begin(RequestId(1)).unwrap(), calls.begin(RequestId(2)).unwrap());
        drop(two);
        assert!(calls.is_waiting(RequestId(1)) && !calls.is_waiting(RequestId(2)));
        assert_eq!([calls.deliver(reply(2)), calls.deliver(Message::default())], [1, 2]);
        assert_eq!([calls.deliver(reply(1)), calls.deliver(reply(1))], [0, 1]);
        assert_eq!(one.reply().await.unwrap().unwrap(), reply(1));
    }

    #[tokio::test]
    async fn replaced_call_does_not_get_the_reply() {
        let calls = Calls::new();
        let mut old = calls.begin(RequestId(1)).unwrap();
        let mut new = calls.begin(RequestId(1)).unwrap();
        assert!(old.reply().await.is_none());
        drop(old);
        calls.deliver(reply(1));
        assert!(new.reply().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn failure_ends_all_calls_and_refuses_new_ones() {
        let calls = Calls::new();
        let mut call = calls.begin(RequestId(1)).unwrap();
        calls.fail(|| TransportError::Closed);
        assert!(matches!(call.reply().now_or_never(), Some(Some(Err(TransportError::Closed)))));
        assert!(calls.begin(RequestId(2)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_deadline_restarts_with_each_byte() {
        let second = Duration::from_secs(1);
        let activity = Activity::default();
        let begin = Instant::now();
        let noise = async {
            for _ in 0..5 {
                tokio::time::sleep(second).await;
                activity.record();
            }
            std::future::pending::<()>().await;
        };
        assert!(activity.within(Deadline::Silence(2 * second), noise).await.is_none());
        assert_eq!(begin.elapsed().as_secs(), 7);
        let busy = async {
            loop {
                tokio::time::sleep(second / 2).await;
                activity.record();
            }
        };
        assert!(activity.within(Deadline::Total(2 * second), busy).await.map(|(): ()| ()).is_none());
        assert_eq!(begin.elapsed().as_secs(), 9);
    }
}
