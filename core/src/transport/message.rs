//! Messages and their size limits.

use bytes::Bytes;

use super::envelope;
use super::error::TransportError;
use crate::model::layout::MAX_PIECE_SIZE;

/// A header and, in replies, an optional payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// A CBOR map that contains the request id, see [`envelope`].
    pub header: Bytes,
    /// Raw bytes; empty if there is no payload.
    pub payload: Bytes,
}

/// The limits that a node imposes on remotes. Exceeding a limit is an error or closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// Maximum size of a header in bytes.
    pub header: usize,
    /// Maximum size of a payload in bytes.
    pub payload: usize,
    /// Maximum number of outstanding requests per connection.
    pub in_flight: usize,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self { header: 64 * 1024, payload: MAX_PIECE_SIZE as usize, in_flight: 64 }
    }
}

impl MessageLimits {
    /// Checks the size of a header in bytes.
    pub const fn check_header(&self, bytes: usize) -> Result<(), TransportError> {
        if bytes > self.header {
            return Err(TransportError::TooLarge { what: "header", limit: self.header, actual: bytes });
        }
        Ok(())
    }

    /// Checks the sizes of the header and payload of a message.
    pub const fn check(&self, message: &Message) -> Result<(), TransportError> {
        let actual = message.payload.len();
        if actual > self.payload {
            return Err(TransportError::TooLarge { what: "payload", limit: self.payload, actual });
        }
        self.check_header(message.header.len())
    }

    /// Returns the reply if it is within the limits. Otherwise, returns the error reply to send in its place and the error
    /// for the sender.
    pub fn fit(&self, reply: Message) -> (Message, Result<(), TransportError>) {
        match self.check(&reply) {
            Ok(()) => (reply, Ok(())),
            Err(error) => {
                let header = envelope::too_large_reply(&reply.header);
                (Message { header, payload: Bytes::new() }, Err(error))
            }
        }
    }
}
