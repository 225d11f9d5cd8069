//! The listeners of a node and their tasks.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::transport::dialer::Dialer;
use enjambre_core::{Endpoint, Listener, TransportError};
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::{Failure, Status};

/// Bound listeners. They handle requests after [`Listeners::serve`].
#[derive(Debug, Default)]
pub struct Listeners {
    listeners: Vec<Arc<dyn Listener>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Binds all endpoints, or none if one of them fails.
    pub async fn bind(dialer: &Dialer, endpoints: &[Endpoint]) -> Result<Self, TransportError> {
        let mut bound = Self::default();
        for endpoint in endpoints {
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
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.iter().map(|listener| listener.local_endpoint().clone()).collect()
    }

    /// Starts to handle requests.
    pub fn serve(&mut self, handler: &Arc<dyn Handler>) {
        let spawn =
            |listener: &Arc<dyn Listener>| tokio::spawn(serve(Arc::clone(listener), Arc::clone(handler)));
        self.tasks = self.listeners.iter().map(spawn).collect();
    }

    /// Stops listening, with `grace` for pending replies.
    pub async fn shutdown(&mut self, grace: Duration) {
        join_all(self.listeners.iter().map(|listener| listener.shutdown(grace))).await;
        let finished = join_all(self.tasks.drain(..));
        if timeout(grace + Duration::from_millis(500), finished).await.is_err() {
            tracing::debug!("pending requests aborted at shutdown");
        }
        self.listeners.clear();
    }
}

/// Returns whether the error is caused by an address in use.
pub fn is_in_use(error: &TransportError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if kind == Some(std::io::ErrorKind::AddrInUse) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Creates the failure for a listener that cannot be bound.
pub fn bind_failure(error: &TransportError) -> Failure {
    let failure = Failure::from_error(Status::Failed, error);
    if is_in_use(error) {
        let message = format!(
            "{failure}; stop the program that uses the port, or set transport.listen to another port"
        );
        return Failure::failed(message);
    }
    failure
}
