//! The requesting side: typed calls over a connection.

use bytes::Bytes;

use super::codec;
use super::error::ErrorReply;
use super::message::{Reply, Request};
use crate::model::endpoint::Endpoint;
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::{Connection, Deadline};

/// Why a call returned no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request or the reply was not transferred.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The remote answered with an error.
    #[error("{endpoint} answered: {error}")]
    Remote {
        /// The remote.
        endpoint: Endpoint,
        /// Its answer.
        error: ErrorReply,
    },
    /// The remote violated the protocol.
    #[error("protocol violation by {endpoint}: {problem}")]
    Protocol {
        /// The remote.
        endpoint: Endpoint,
        /// The violation.
        problem: &'static str,
    },
}

impl CallError {
    /// Returns the error reply of the remote, if there is one.
    pub const fn remote(&self) -> Option<&ErrorReply> {
        match self {
            Self::Remote { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Sends a request and returns its reply and payload.
pub async fn call(
    connection: &dyn Connection,
    request: &Request,
    deadline: Deadline,
) -> Result<(Reply, Bytes), CallError> {
    call_with_id(connection, connection.next_id(), request, deadline).await
}

/// Like [`call`], with an id that the caller has taken from the connection. The id allows cancelling the request.
pub async fn call_with_id(
    connection: &dyn Connection,
    id: RequestId,
    request: &Request,
    deadline: Deadline,
) -> Result<(Reply, Bytes), CallError> {
    let message = connection.call(id, codec::encode_request(id, request), deadline).await?;
    match codec::decode_reply(&message.header) {
        Some(Ok(reply)) => Ok((reply, message.payload)),
        Some(Err(error)) => Err(CallError::Remote { endpoint: connection.endpoint().clone(), error }),
        None => Err(unexpected(connection)),
    }
}

/// The error for a reply of a kind that does not belong to the request.
pub fn unexpected(connection: &dyn Connection) -> CallError {
    CallError::Protocol {
        endpoint: connection.endpoint().clone(),
        problem: "the reply does not match the request",
    }
}
