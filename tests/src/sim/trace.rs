//! The log of a simulation: a hash of all events, and optionally the events themselves.

use std::fmt::Arguments;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A log of events. Clones share the log.
#[derive(Debug, Clone)]
pub struct Trace {
    start: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    hasher: blake3::Hasher,
    lines: u64,
    print: bool,
}

impl Trace {
    /// Creates an empty trace that starts now. With `print` it also writes every event to standard output.
    pub fn new(print: bool) -> Self {
        let inner = Inner { hasher: blake3::Hasher::new(), lines: 0, print };
        Self { start: Instant::now(), inner: Arc::new(Mutex::new(inner)) }
    }

    /// Records an event of a node.
    pub fn note(&self, node: &str, event: Arguments<'_>) {
        let line = format!("{:>12.3} {node:<4} {event}", self.start.elapsed().as_secs_f64() * 1000.0);
        let mut inner = self.inner.lock();
        inner.hasher.update(line.as_bytes()).update(b"\n");
        inner.lines += 1;
        if inner.print {
            println!("{line}");
        }
    }

    /// Returns the hash and the number of events so far.
    pub fn hash(&self) -> (blake3::Hash, u64) {
        let inner = self.inner.lock();
        (inner.hasher.finalize(), inner.lines)
    }
}
