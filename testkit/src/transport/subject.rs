//! The transport under test.

use std::any::Any;
use std::sync::Arc;

use enjambre_core::{Connection, Endpoint, Listener, MessageLimits, Transport};

use super::probe::in_time;

/// A transport under test.
#[derive(Debug)]
pub struct Subject {
    /// The transport, without any other use.
    pub transport: Arc<dyn Transport>,
    /// An endpoint to listen at, with port 0.
    pub endpoint: Endpoint,
    /// The limits of the transport. Those of payload and header are at least the default ones.
    pub limits: MessageLimits,
    /// A resource that is dropped after the transport, for example a temporary directory.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl Subject {
    pub(super) async fn listen(&self) -> Arc<dyn Listener> {
        let listener = in_time("bind", self.transport.bind(&self.endpoint)).await.expect("a free endpoint");
        assert_ne!(listener.local_endpoint().port(), 0, "the endpoint contains the chosen port");
        listener
    }

    pub(super) async fn connect(&self, endpoint: &Endpoint) -> Arc<dyn Connection> {
        in_time("connection", self.transport.connect(endpoint)).await.expect("a valid endpoint")
    }

    pub(super) async fn pair(&self) -> (Arc<dyn Listener>, Arc<dyn Connection>) {
        let listener = self.listen().await;
        let connection = self.connect(listener.local_endpoint()).await;
        (listener, connection)
    }
}
