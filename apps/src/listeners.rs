//! The listeners of a node and the tasks that answer on them.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::transport::Listener;
use enjambre_core::transport::dialer::Dialer;
use enjambre_core::transport::error::TransportError;
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::{Failure, Status};

/// Listeners that are bound. They answer once [`Listeners::serve`] was called.
#[derive(Debug, Default)]
pub struct Listeners {
    listeners: Vec<Arc<dyn Listener>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Listens at every endpoint, or at none.
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

    /// Where they listen, with the ports that were chosen.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.iter().map(|listener| listener.local_endpoint().clone()).collect()
    }

    /// Begins to answer.
    pub fn serve(&mut self, handler: &Arc<dyn Handler>) {
        let spawn =
            |listener: &Arc<dyn Listener>| tokio::spawn(serve(Arc::clone(listener), Arc::clone(handler)));
        self.tasks = self.listeners.iter().map(spawn).collect();
    }

    /// Stops listening; replies under way have `grace` to leave.
    pub async fn shutdown(&mut self, grace: Duration) {
        join_all(self.listeners.iter().map(|listener| listener.shutdown(grace))).await;
        let ended = join_all(self.tasks.drain(..));
        if timeout(grace + Duration::from_millis(500), ended).await.is_err() {
            tracing::debug!("some answers were still under way");
        }
        self.listeners.clear();
    }
}

/// Whether somebody else listens there already.
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

/// What to tell the user about a listener that could not be bound.
pub fn bind_failure(error: &TransportError) -> Failure {
    let failure = Failure::from_error(Status::Failed, error);
    if is_in_use(error) {
        let message = format!("{failure}; stop the other program, or set transport.listen to another port");
        return Failure::failed(message);
    }
    failure
}
