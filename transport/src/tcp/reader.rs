//! Takes frames from a stream. Large parts are read to where they are wanted, without a buffer in between.

use bytes::Bytes;
use enjambre_core::transport::calls::Activity;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::guard::cutoff::CutOff;
use crate::settings::TransportSettings;

/// The lengths of header and payload, 4 bytes each.
pub(super) const PREFIX: usize = 8;
/// What is read at once when small things come: many requests, or the header of a reply. Of a payload at most so much is
/// copied.
const BUFFER: usize = 8 * 1024;

/// What a frame says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) header: usize,
    pub(super) payload: usize,
}

impl Lengths {
    pub(super) fn encode(header: usize, payload: usize) -> [u8; PREFIX] {
        // Both were checked against limits that are far below.
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

    /// Nothing is allocated for what is larger than allowed.
    fn check(self, settings: &TransportSettings) -> Result<Self, CutOff> {
        let parts = [("header", settings.header, self.header), ("payload", settings.payload, self.payload)];
        for (what, limit, actual) in parts {
            if actual > limit {
                return Err(CutOff::Limit { what, limit: limit as u64, actual: actual as u64 });
            }
        }
        Ok(self)
    }
}

/// Reads frames.
pub(super) struct FrameReader<R> {
    from: R,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    activity: Activity,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Tells `activity` of everything that comes.
    pub(super) fn new(from: R, activity: Activity) -> Self {
        Self { from, buffer: vec![0; BUFFER], begin: 0, end: 0, activity }
    }

    /// The lengths of the next frame; `None` where the stream ends before it.
    pub(super) async fn next(&mut self, settings: &TransportSettings) -> Result<Option<Lengths>, CutOff> {
        while self.end - self.begin < PREFIX {
            if self.fill().await? == 0 {
                return if self.begin == self.end { Ok(None) } else { Err(CutOff::Closed) };
            }
        }
        let mut prefix = [0; PREFIX];
        self.take(&mut prefix);
        Lengths::decode(prefix).check(settings).map(Some)
    }

    /// The next `length` bytes, which is the length of a header.
    pub(super) async fn header(&mut self, length: usize) -> Result<Bytes, CutOff> {
        if self.end - self.begin >= length {
            let header = Bytes::copy_from_slice(&self.buffer[self.begin..self.begin + length]);
            self.begin += length;
            return Ok(header);
        }
        let mut header = vec![0; length];
        self.exact(&mut header).await?;
        Ok(header.into())
    }

    /// Fills `into`.
    pub(super) async fn exact(&mut self, into: &mut [u8]) -> Result<(), CutOff> {
        let mut done = self.take(into);
        while done < into.len() {
            // A short rest comes with what follows it.
            if into.len() - done < BUFFER / 2 {
                if self.fill().await? == 0 {
                    return Err(CutOff::Closed);
                }
                done += self.take(&mut into[done..]);
                continue;
            }
            let read = self.from.read(&mut into[done..]).await?;
            if read == 0 {
                return Err(CutOff::Closed);
            }
            self.activity.heard();
            done += read;
        }
        Ok(())
    }

    /// Drops the next `length` bytes.
    pub(super) async fn skip(&mut self, length: usize) -> Result<(), CutOff> {
        let mut left = length;
        loop {
            let here = left.min(self.end - self.begin);
            self.begin += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            if self.fill().await? == 0 {
                return Err(CutOff::Closed);
            }
        }
    }

    /// Where it reads from.
    pub(super) fn source(&self) -> &R {
        &self.from
    }

    /// Copies what is in the buffer.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let here = into.len().min(self.end - self.begin);
        into[..here].copy_from_slice(&self.buffer[self.begin..self.begin + here]);
        self.begin += here;
        here
    }

    async fn fill(&mut self) -> Result<usize, CutOff> {
        // What is left is the beginning of a prefix or a header, so it is short.
        self.buffer.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        let read = self.from.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        self.activity.heard();
        Ok(read)
    }
}
