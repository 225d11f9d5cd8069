//! Runs the transport conformance test suite on the transport over Unix domain sockets.

use std::sync::Arc;

use enjambre_core::MessageLimits;
use enjambre_pipe::Pipe;
use enjambre_testkit::transport::Subject;

fn subject() -> Subject {
    let directory = tempfile::tempdir().expect("temporary directory");
    let limits = MessageLimits::default();
    Subject {
        transport: Arc::new(Pipe::new(directory.path(), limits)),
        endpoint: "pipe://localhost:0".parse().expect("endpoint"),
        limits,
        guard: Box::new(directory),
    }
}

enjambre_testkit::transport_conformance!(subject());
