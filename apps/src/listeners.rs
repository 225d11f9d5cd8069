//! The listeners of a node and their tasks.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use enjambre_control::{Failure, Status};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::{Dialer, Endpoint, Listener, TransportError, runtime};
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bound listeners. They handle requests after [`Listeners::serve`].
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    listeners: Vec<Arc<dyn Listener>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Binds all endpoints, or none if one of them fails.
    pub(crate) async fn bind(dialer: &Dialer, endpoints: &[Endpoint]) -> Result<Self, TransportError> {
        let mut bound = Self::default();
        for endpoint in endpoints {
            if is_covered(endpoint, endpoints) {
                continue;
            }
            match dialer.bind(endpoint).await {
                Ok(listener) => bound.listeners.push(listener),
                Err(error) => {
                    bound.shutdown(Duration::ZERO).await;
                    return Err(error);
                }
            }
        }
        Ok(bound)
    }

    /// Returns the bound endpoints, with the ports that the system chose.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.iter().map(|listener| listener.local_endpoint().clone()).collect()
    }

    pub(crate) fn serve(&mut self, handler: &Arc<dyn Handler>) {
        let spawn =
            |listener: &Arc<dyn Listener>| runtime::spawn(serve(Arc::clone(listener), Arc::clone(handler)));
        self.tasks = self.listeners.iter().map(spawn).collect();
    }

    /// Stops listening, with `grace` for pending replies.
    pub(crate) async fn shutdown(&mut self, grace: Duration) {
        join_all(self.listeners.iter().map(|listener| listener.shutdown(grace))).await;
        let finished = join_all(self.tasks.drain(..));
        if timeout(grace + Duration::from_millis(500), finished).await.is_err() {
            tracing::debug!("pending requests aborted at shutdown");
        }
        self.listeners.clear();
    }
}

/// Returns whether the endpoint is `0.0.0.0` and another one is `[::]` with the same scheme and port, which includes it.
fn is_covered(endpoint: &Endpoint, all: &[Endpoint]) -> bool {
    endpoint.address() == Some(Ipv4Addr::UNSPECIFIED.into())
        && endpoint.port() != 0
        && all.contains(&endpoint.with_address(Ipv6Addr::UNSPECIFIED.into()))
}

pub(crate) fn is_in_use(error: &TransportError) -> bool {
    let error: &(dyn std::error::Error + 'static) = error;
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
    })
}

/// Creates the failure for a listener that cannot be bound.
pub(crate) fn bind_failure(error: &TransportError) -> Failure {
    let failure = Failure::from_error(Status::Failed, error);
    if !is_in_use(error) {
        return failure;
    }
    Failure::failed(format!(
        "{failure}; stop the program that uses the port, or set transport.listen to another port"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_wildcard_is_covered_by_ipv6_wildcard_on_the_same_port() {
        let all =
            ["tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://0.0.0.0:2", "zmq://0.0.0.0:1", "tcp://10.0.0.1:1"];
        let all = all.map(|text| text.parse().unwrap());
        let covered: Vec<bool> = all.iter().map(|endpoint| is_covered(endpoint, &all)).collect();
        assert_eq!(covered, [true, false, false, false, false]);
    }
}
