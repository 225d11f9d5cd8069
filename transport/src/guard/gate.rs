//! The limit on the outstanding requests of a connection, in number and in bytes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Limits the outstanding requests of a connection and their bytes. A request leaves the gate with [`RequestGate::leave`],
/// or by dropping its [`Slot`], when its reply is sent.
#[derive(Debug)]
pub(crate) struct RequestGate {
    requests: Semaphore,
    bytes: Semaphore,
    allowed: usize,
    /// The start of the newest request, while it is incomplete.
    arriving: Mutex<Option<Instant>>,
}

impl RequestGate {
    /// Creates a gate for this number of requests. `header` is the maximum size of a header in bytes.
    pub(crate) fn new(in_flight: usize, header: usize) -> Self {
        Self {
            requests: Semaphore::new(in_flight),
            bytes: Semaphore::new(4 * header),
            allowed: in_flight,
            arriving: Mutex::default(),
        }
    }

    /// Admits bytes of a request, the first ones if it `opens`. Returns false if the limit is reached.
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

    /// Like [`RequestGate::try_enter`], but waits.
    pub(crate) async fn enter(&self, opens: bool, bytes: u32) {
        // The semaphores are never closed. The end of the connection drops this future.
        if opens && let Ok(request) = self.requests.acquire().await {
            request.forget();
        }
        if let Ok(bytes) = self.bytes.acquire_many(bytes).await {
            bytes.forget();
        }
    }

    /// Removes a request with this number of bytes.
    pub(crate) fn leave(&self, bytes: usize) {
        self.requests.add_permits(1);
        self.bytes.add_permits(bytes);
    }

    /// Sets whether the connection waits for more bytes of an incomplete request.
    pub(crate) fn set_arriving(&self, arriving: bool) {
        let mut since = self.arriving.lock();
        *since = arriving.then(|| since.unwrap_or_else(Instant::now));
    }

    /// The time since the start of the incomplete request.
    pub(crate) fn arriving_for(&self) -> Option<Duration> {
        self.arriving.lock().map(|since| since.elapsed())
    }

    /// The number of outstanding requests.
    pub(crate) fn in_flight(&self) -> usize {
        self.allowed.saturating_sub(self.requests.available_permits())
    }

    /// Returns whether any complete request is outstanding.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight() > usize::from(self.arriving.lock().is_some())
    }
}

/// The slot of a request at the gate. Dropping it admits the next request.
#[derive(Debug)]
pub(crate) struct Slot {
    gate: Arc<RequestGate>,
    bytes: usize,
}

impl Slot {
    /// Creates the slot of a request that has entered with this number of bytes.
    pub(crate) fn new(gate: &Arc<RequestGate>, bytes: usize) -> Self {
        Self { gate: Arc::clone(gate), bytes }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.leave(self.bytes);
    }
}
