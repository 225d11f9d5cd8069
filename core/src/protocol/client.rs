//! The asking end: a typed call over a connection.

use bytes::Bytes;

use super::codec;
use super::error::ErrorReply;
use super::message::{Reply, Request};
use crate::model::endpoint::Endpoint;
use crate::transport::envelope::RequestId;
use crate::transport::error::TransportError;
use crate::transport::{Connection, Deadline};

/// Why a call gave no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The message did not get there or the reply not back.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The remote refused.
    #[error("{endpoint} answered: {error}")]
    Remote {
        /// Who refused.
        endpoint: Endpoint,
        /// What it said.
        error: ErrorReply,
    },
    /// The remote broke the protocol.
    #[error("{endpoint} broke the protocol: {problem}")]
    Protocol {
        /// Who did.
        endpoint: Endpoint,
        /// What it did.
        problem: &'static str,
    },
}

impl CallError {
    /// What the remote said, if it was the remote that refused.
    pub const fn remote(&self) -> Option<&ErrorReply> {
        match self {
            Self::Remote { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Asks and waits for the reply and its payload.
pub async fn ask(
    connection: &dyn Connection,
    request: &Request,
    deadline: Deadline,
) -> Result<(Reply, Bytes), CallError> {
    ask_as(connection, connection.next_id(), request, deadline).await
}

/// As [`ask`], under an id of the connection that the caller took before, to be able to cancel the request.
pub async fn ask_as(
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

/// The error for a reply of a kind that does not answer the request.
pub fn unexpected(connection: &dyn Connection) -> CallError {
    CallError::Protocol {
        endpoint: connection.endpoint().clone(),
        problem: "its reply is not one to this request",
    }
}
