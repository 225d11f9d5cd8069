//! The conformance test suite, for each scheme.

use std::sync::Arc;

use enjambre_core::{KeyPair, MessageLimits, Transport};
use enjambre_testkit::transport::Subject;
use enjambre_transport::settings::TransportSettings;

fn subject(transport: Arc<dyn Transport>) -> Subject {
    Subject {
        endpoint: format!("{}://127.0.0.1:0", transport.scheme()).parse().expect("a valid endpoint"),
        transport,
        limits: MessageLimits::default(),
        guard: Box::new(()),
    }
}

mod zmq {
    enjambre_testkit::transport_conformance!(super::subject(
        enjambre_transport::Shared::new(super::TransportSettings::default()).unwrap().zmq()
    ));
}

mod tcp {
    enjambre_testkit::transport_conformance!(super::subject(
        enjambre_transport::Shared::new(super::TransportSettings::default()).unwrap().tcp()
    ));
}

mod zmqs {
    enjambre_testkit::transport_conformance!({
        let shared = enjambre_transport::Shared::new(super::TransportSettings::default()).unwrap();
        let [_, zmqs] = shared.secure(&super::KeyPair::generate());
        super::subject(zmqs)
    });
}

mod tcps {
    enjambre_testkit::transport_conformance!({
        let shared = enjambre_transport::Shared::new(super::TransportSettings::default()).unwrap();
        let [tcps, _] = shared.secure(&super::KeyPair::generate());
        super::subject(tcps)
    });
}
