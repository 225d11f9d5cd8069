//! The in-memory transport passes the conformance test suite.

use std::sync::Arc;

use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{MessageLimits, Transport};
use enjambre_testkit::transport::Subject;

fn subject(transport: Arc<dyn Transport>) -> Subject {
    let endpoint = "memory://node:0".parse().expect("a valid endpoint");
    Subject { transport, endpoint, limits: MessageLimits::default(), guard: Box::new(()) }
}

mod plain {
    enjambre_testkit::transport_conformance!(super::subject(super::MemoryNetwork::new().transport()));
}

mod authenticated {
    use enjambre_core::PeerId;

    enjambre_testkit::transport_conformance!(super::subject(
        super::MemoryNetwork::new().transport_of(PeerId::from_bytes([7; 32]))
    ));
}
