//! Failures of requests to the cluster, and their conversion to [`StorageError`].

use std::error::Error;

use enjambre_core::StorageError;
use enjambre_core::storage::inspect::with_causes;
use tonic::{Code, ConnectError, Status};

use crate::remote::{MAX_OPERATIONS, REQUEST_BYTES};

/// A failed request.
#[derive(Debug, thiserror::Error)]
#[error("{endpoint}: {}", describe(.status))]
pub(crate) struct Failure {
    pub(crate) endpoint: String,
    pub(crate) status: Status,
}

impl Failure {
    /// Returns whether no connection was established, so the member has not received the request.
    pub(crate) fn is_not_sent(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&self.status);
        while let Some(error) = cause {
            if error.is::<ConnectError>() {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// Returns whether etcd itself refused the request. Then it is not executed, except for [`Failure::is_no_space`].
    pub(crate) fn is_refusal(&self) -> bool {
        let is_from_etcd = self.status.source().is_none()
            && ["etcdserver: ", "grpc: "].iter().any(|start| self.status.message().starts_with(start));
        let is_certain = !matches!(
            self.status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Internal | Code::Unknown
        );
        is_from_etcd && is_certain
    }

    /// Returns whether the quota is exceeded. etcd reports it for the request that exceeds the quota, which is executed, and for
    /// all later ones, which are not.
    pub(crate) fn is_no_space(&self) -> bool {
        self.is_refusal() && self.has("database space exceeded")
    }

    /// Returns whether the token is not valid any more.
    pub(crate) fn is_token_invalid(&self) -> bool {
        self.is_refusal() && (self.has("invalid auth token") || self.has("revision of auth store is old"))
    }

    /// Returns whether the revision of a read was removed by a compaction.
    pub(crate) fn is_compacted(&self) -> bool {
        self.is_refusal() && self.has("revision has been compacted")
    }

    /// Returns whether the client refused a reply because of its size.
    pub(crate) fn is_large_reply(&self) -> bool {
        self.status.code() == Code::OutOfRange && self.has("message length too large")
    }

    fn has(&self, text: &str) -> bool {
        self.status.message().contains(text)
    }

    /// Converts the failure of `action`, a verb phrase.
    pub(crate) fn explain(self, action: &str) -> StorageError {
        if self.is_no_space() {
            let remedy = "increase --quota-backend-bytes of etcd, or compact and defragment it; then disarm its alarm NOSPACE";
            return StorageError::Full { source: format!("{self}; {remedy}").into() };
        }
        if self.has("too many operations") {
            let remedy = format!("start etcd with --max-txn-ops={MAX_OPERATIONS} or more");
            return StorageError::backend(action, format!("{self}; {remedy}"));
        }
        if self.has("request is too large") || self.has("received message larger than max") {
            let remedy = format!("start etcd with --max-request-bytes={REQUEST_BYTES} or more");
            return StorageError::backend(action, format!("{self}; {remedy}"));
        }
        if self.is_large_reply() || (self.is_refusal() && !self.has("too many requests")) {
            return StorageError::backend(action, self);
        }
        StorageError::Unavailable { reason: self.to_string() }
    }
}

/// Prefers the causes of errors of the connection, because the message of the client is unspecific.
fn describe(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), with_causes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certain_refusals_are_not_executed() {
        let failure = |code, message: &str| Failure {
            endpoint: "http://db:2379".to_owned(),
            status: Status::new(code, message),
        };
        for (code, message, refused, expected) in [
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", true, "Full"),
            (Code::ResourceExhausted, "etcdserver: too many requests", true, "Unavailable"),
            (Code::PermissionDenied, "etcdserver: permission denied", true, "Backend"),
            (Code::InvalidArgument, "etcdserver: request is too large", true, "--max-request-bytes=10000000"),
            (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
                true,
                "--max-txn-ops=5001",
            ),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (9 vs. 8)",
                true,
                "--max-request-bytes",
            ),
            (Code::Unavailable, "etcdserver: request timed out", false, "Unavailable"),
            (Code::Unknown, "etcdserver: leader changed", false, "Unavailable"),
            (Code::ResourceExhausted, "h2 protocol error", false, "Unavailable"),
            (Code::DeadlineExceeded, "no reply within 10s", false, "Unavailable"),
        ] {
            let failure = failure(code, message);
            assert_eq!((failure.is_refusal(), failure.is_not_sent()), (refused, false), "{message}");
            let error = failure.explain("commit");
            assert!(format!("{error:?}").contains(expected), "{message}: {error:?}");
        }
        let mut status = Status::unavailable("transport error");
        status.set_source(std::sync::Arc::new(ConnectError("connection refused".into())));
        let failure = Failure { endpoint: "http://db:2379".to_owned(), status };
        assert!(failure.is_not_sent() && !failure.is_refusal());
        assert_eq!(failure.to_string(), "http://db:2379: connection refused");
    }
}
