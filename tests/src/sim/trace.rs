//! What happened, in order: a hash over all of it, and on demand every line.

use std::fmt::Arguments;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Takes down what happens. Clones are the same trace.
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
    /// An empty trace that begins now; with `print` each line goes to the standard output too.
    pub fn new(print: bool) -> Self {
        let inner = Inner { hasher: blake3::Hasher::new(), lines: 0, print };
        Self { start: Instant::now(), inner: Arc::new(Mutex::new(inner)) }
    }

    /// Notes something that `who` did or met.
    pub fn note(&self, who: &str, what: Arguments<'_>) {
        let line = format!("{:>12.3} {who:<4} {what}", self.start.elapsed().as_secs_f64() * 1000.0);
        let mut inner = self.inner.lock();
        inner.hasher.update(line.as_bytes()).update(b"\n");
        inner.lines += 1;
        if inner.print {
            println!("{line}");
        }
    }

    /// The hash of every line so far, and how many there are.
    pub fn hash(&self) -> (blake3::Hash, u64) {
        let inner = self.inner.lock();
        (inner.hasher.finalize(), inner.lines)
    }
}
