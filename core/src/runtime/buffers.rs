//! A pool of large reusable buffers.
//!
//! A node processes content in pieces of 256 KiB to 4 MiB. Newly mapped memory costs a page fault for every 4 KiB, which is
//! more than a copy. A [`Buffer`] is filled, frozen into [`Bytes`], and returns to its [`BufferPool`] when the last handle is
//! dropped. The pool bounds idle memory only; callers bound the number of buffers in use.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// The smallest pooled size in bytes.
const SMALLEST: usize = 64 * 1024;
/// The largest pooled size in bytes.
const LARGEST: usize = 8 * 1024 * 1024;
const CLASSES: usize = (LARGEST.ilog2() - SMALLEST.ilog2()) as usize + 1;

#[derive(Debug, Default)]
struct Idle {
    /// Stacks of buffers by size: powers of two from [`SMALLEST`]. The last used buffer is reused first, since it is in the CPU cache.
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

/// A pool of buffers. Clones share the pool.
#[derive(Debug, Clone)]
pub struct BufferPool {
    idle: Arc<Mutex<Idle>>,
    max_idle: usize,
}

impl BufferPool {
    /// A pool that keeps at most `max_idle` bytes in idle buffers.
    pub fn new(max_idle: usize) -> Self {
        Self { idle: Arc::default(), max_idle }
    }

    /// Returns a buffer of `len` bytes with unspecified content.
    pub fn take(&self, len: usize) -> Buffer {
        let class = class_of(len);
        let reused = class.and_then(|class| {
            let mut idle = self.idle.lock();
            let bytes = idle.classes[class].pop()?;
            idle.bytes -= bytes.len();
            Some(bytes)
        });
        let size = class.map_or(len, |class| SMALLEST << class);
        Buffer { bytes: reused.unwrap_or_else(|| vec![0; size]), len, pool: class.map(|_| self.clone()) }
    }

    /// Copies a value, into a pooled buffer if it is large.
    pub fn copy(&self, value: &[u8]) -> Bytes {
        if class_of(value.len()).is_none() {
            return Bytes::copy_from_slice(value);
        }
        let mut copy = self.take(value.len());
        copy.copy_from_slice(value);
        copy.freeze()
    }

    /// The number of bytes in idle buffers.
    pub fn idle_bytes(&self) -> usize {
        self.idle.lock().bytes
    }

    fn put(&self, bytes: Vec<u8>) {
        let mut idle = self.idle.lock();
        if let Some(class) = class_of(bytes.len())
            && idle.bytes + bytes.len() <= self.max_idle
        {
            idle.bytes += bytes.len();
            idle.classes[class].push(bytes);
        }
    }
}

/// Returns the smallest class for `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    let size = len.next_power_of_two();
    (len > SMALLEST / 2 && size <= LARGEST).then(|| (size.max(SMALLEST) / SMALLEST).ilog2() as usize)
}

/// A mutable buffer. It returns to its pool when it is dropped, or when the last handle to its frozen bytes is dropped.
pub struct Buffer {
    /// As long as its class, so that reuse needs no zeroing.
    bytes: Vec<u8>,
    len: usize,
    pool: Option<BufferPool>,
}

impl Buffer {
    /// Shortens the buffer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Converts the buffer into shared bytes without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.put(std::mem::take(&mut self.bytes));
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_returns_when_last_handle_is_dropped() {
        let pool = BufferPool::new(1 << 20);
        let mut buffer = pool.take(200_000);
        buffer.fill(7);
        let address = buffer.as_ptr();
        let bytes = buffer.freeze();
        let half = bytes.slice(..100_000);
        drop(bytes);
        assert_eq!(pool.idle_bytes(), 0, "half of the buffer is in use");
        assert!(half.iter().all(|&byte| byte == 7));
        drop(half);
        assert_eq!(pool.idle_bytes(), 256 * 1024);
        let again = pool.take(150_000);
        assert_eq!((again.as_ptr(), again.len(), pool.idle_bytes()), (address, 150_000, 0));
    }

    #[test]
    fn pool_keeps_at_most_max_idle_bytes() {
        let pool = BufferPool::new(300_000);
        let (first, second) = (pool.take(200_000), pool.take(200_000));
        let others = [pool.take(0), pool.take(1000), pool.take(LARGEST + 1)];
        assert_eq!(others.each_ref().map(|buffer| buffer.len()), [0, 1000, LARGEST + 1]);
        drop((first, second, others));
        assert_eq!(pool.idle_bytes(), 256 * 1024);
        assert_eq!(pool.take(LARGEST).len(), LARGEST);
    }

    #[test]
    fn size_fits_its_class() {
        for len in [SMALLEST / 2 + 1, SMALLEST, SMALLEST + 1, LARGEST - 1, LARGEST] {
            let size = SMALLEST << class_of(len).unwrap();
            assert!(size >= len && (size == SMALLEST || size / 2 < len), "{len}");
        }
        assert_eq!((class_of(SMALLEST / 2), class_of(LARGEST + 1)), (None, None));
    }
}
