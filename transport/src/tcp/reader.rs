//! Reads frames from a stream. Large parts are read without an intermediate buffer.

use bytes::Bytes;
use enjambre_core::Activity;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::guard::disconnect::Disconnect;
use crate::settings::TransportSettings;

/// The size of the prefix: the lengths of header and payload, 4 bytes each.
pub(super) const PREFIX: usize = 8;
/// The size of the read buffer, for requests and headers of replies. At most this number of bytes of a payload is copied.
const BUFFER: usize = 8 * 1024;

/// The lengths in the prefix of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) header: usize,
    pub(super) payload: usize,
}

impl Lengths {
    pub(super) fn encode(header: usize, payload: usize) -> [u8; PREFIX] {
        // The limits of both are far smaller.
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
        let mut prefix = [0; PREFIX];
        prefix[..4].copy_from_slice(&length(header));
        prefix[4..].copy_from_slice(&length(payload));
        prefix
    }

    fn decode(prefix: [u8; PREFIX]) -> Self {
        let [a, b, c, d, e, f, g, h] = prefix;
        let length = |bytes| usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX);
        Self { header: length([a, b, c, d]), payload: length([e, f, g, h]) }
    }

    /// Checks the limits, before memory is allocated.
    fn check(self, settings: &TransportSettings) -> Result<Self, Disconnect> {
        Disconnect::check_limit(
            "header size (transport.limits.header)",
            settings.header as u64,
            self.header as u64,
        )?;
        Disconnect::check_limit(
            "payload size (transport.limits.payload)",
            settings.payload as u64,
            self.payload as u64,
        )?;
        Ok(self)
    }
}

/// A buffered reader of frames.
pub(super) struct FrameReader<R> {
    from: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    activity: Activity,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Creates a reader that records received bytes in `activity`.
    pub(super) fn new(from: R, activity: Activity) -> Self {
        Self { from, buffer: vec![0; BUFFER], start: 0, end: 0, activity }
    }

    /// Reads the prefix of the next frame. Returns `None` at the end of the stream.
    pub(super) async fn next(&mut self, settings: &TransportSettings) -> Result<Option<Lengths>, Disconnect> {
        while self.end - self.start < PREFIX {
            if self.fill().await? == 0 {
                return if self.start == self.end { Ok(None) } else { Err(Disconnect::Closed) };
            }
        }
        let mut prefix = [0; PREFIX];
        self.take(&mut prefix);
        Lengths::decode(prefix).check(settings).map(Some)
    }

    /// Reads a header.
    pub(super) async fn header(&mut self, length: usize) -> Result<Bytes, Disconnect> {
        if self.end - self.start >= length {
            let header = Bytes::copy_from_slice(&self.buffer[self.start..self.start + length]);
            self.start += length;
            return Ok(header);
        }
        let mut header = vec![0; length];
        self.exact(&mut header).await?;
        Ok(header.into())
    }

    /// Reads exactly the length of `into`.
    pub(super) async fn exact(&mut self, into: &mut [u8]) -> Result<(), Disconnect> {
        let mut done = self.take(into);
        while done < into.len() {
            // A short rest is read together with the following frames.
            if into.len() - done < BUFFER / 2 {
                if self.fill().await? == 0 {
                    return Err(Disconnect::Closed);
                }
                done += self.take(&mut into[done..]);
                continue;
            }
            let read = self.from.read(&mut into[done..]).await?;
            if read == 0 {
                return Err(Disconnect::Closed);
            }
            self.activity.record();
            done += read;
        }
        Ok(())
    }

    /// Skips bytes.
    pub(super) async fn skip(&mut self, length: usize) -> Result<(), Disconnect> {
        let mut left = length;
        loop {
            let here = left.min(self.end - self.start);
            self.start += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            if self.fill().await? == 0 {
                return Err(Disconnect::Closed);
            }
        }
    }

    /// The underlying stream.
    pub(super) fn source(&self) -> &R {
        &self.from
    }

    /// Copies bytes from the buffer, and returns their number.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let here = into.len().min(self.end - self.start);
        into[..here].copy_from_slice(&self.buffer[self.start..self.start + here]);
        self.start += here;
        here
    }

    async fn fill(&mut self) -> Result<usize, Disconnect> {
        // The rest is short: the start of a prefix or header.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = self.from.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        self.activity.record();
        Ok(read)
    }
}
