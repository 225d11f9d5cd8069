//! How many requests of a connection are in flight, and how many bytes of them.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Bounds the requests of a connection that are in flight, and the bytes of them. What is taken here is given back
/// with [`RequestGate::leave`], or by a [`Slot`], when the reply has left.
#[derive(Debug)]
pub(crate) struct RequestGate {
    requests: Semaphore,
    bytes: Semaphore,
    allowed: usize,
    /// Since when the newest of them has been coming in, where it has not come in whole.
    arriving: Mutex<Option<Instant>>,
}

impl RequestGate {
    /// Room for as many requests; `header` is the largest header in bytes.
    pub(crate) fn new(in_flight: usize, header: usize) -> Self {
        Self {
            requests: Semaphore::new(in_flight),
            bytes: Semaphore::new(4 * header),
            allowed: in_flight,
            arriving: Mutex::default(),
        }
    }

    /// Lets in so many bytes of a request, the first where it `opens`, if there is room at once.
    pub(crate) fn try_enter(&self, opens: bool, bytes: u32) -> bool {
        let request = if opens { Some(self.requests.try_acquire()) } else { None };
        if matches!(request, Some(Err(_))) {
            return false;
        }
        let Ok(bytes) = self.bytes.try_acquire_many(bytes) else { return false };
        bytes.forget();
        if let Some(Ok(request)) = request {
            request.forget();
        }
        true
    }

    /// The same, once there is room.
    pub(crate) async fn enter(&self, opens: bool, bytes: u32) {
        // The semaphores are never closed: the connection's end drops this future.
        if opens && let Ok(request) = self.requests.acquire().await {
            request.forget();
        }
        if let Ok(bytes) = self.bytes.acquire_many(bytes).await {
            bytes.forget();
        }
    }

    /// A request of so many bytes is no longer in flight.
    pub(crate) fn leave(&self, bytes: usize) {
        self.requests.add_permits(1);
        self.bytes.add_permits(bytes);
    }

    /// More of a request is to come in now; or it has come in whole, or waits for room.
    pub(crate) fn set_arriving(&self, arriving: bool) {
        let mut since = self.arriving.lock();
        *since = arriving.then(|| since.unwrap_or_else(Instant::now));
    }

    /// For how long a request has been coming in that is not whole.
    pub(crate) fn arriving_for(&self) -> Option<Duration> {
        self.arriving.lock().map(|since| since.elapsed())
    }

    /// How many requests are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.allowed.saturating_sub(self.requests.available_permits())
    }

    /// Whether requests wait for their replies. One that was only begun keeps nobody busy but the remote.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight() > usize::from(self.arriving.lock().is_some())
    }
}

/// The place of one request that has entered; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Slot {
    gate: Arc<RequestGate>,
    bytes: usize,
}

impl Slot {
    /// For a request that entered with so many bytes.
    pub(crate) fn new(gate: &Arc<RequestGate>, bytes: usize) -> Self {
        Self { gate: Arc::clone(gate), bytes }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.leave(self.bytes);
    }
}
