//! The conformance kit over each transport, on loopback.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::sync::Arc;

use enjambre_core::model::identity::KeyPair;
use enjambre_core::transport::conformance::Subject;
use enjambre_core::transport::{MessageLimits, Transport};
use enjambre_transport::settings::TransportSettings;

fn subject(transport: Arc<dyn Transport>) -> Subject {
    Subject {
        endpoint: format!("{}://127.0.0.1:0", transport.scheme()).parse().expect("an endpoint"),
        transport,
        limits: MessageLimits::default(),
        guard: Box::new(()),
    }
}

mod zmq {
    enjambre_core::transport_conformance!(super::subject(
        enjambre_transport::zmq(super::TransportSettings::default()).unwrap()
    ));
}

mod tcp {
    enjambre_core::transport_conformance!(super::subject(
        enjambre_transport::tcp(super::TransportSettings::default()).unwrap()
    ));
}

mod zmqs {
    enjambre_core::transport_conformance!({
        let shared = enjambre_transport::Shared::new(super::TransportSettings::default()).unwrap();
        let [_, zmqs] = shared.secure(&super::KeyPair::generate());
        super::subject(zmqs)
    });
}

mod tcps {
    enjambre_core::transport_conformance!({
        let shared = enjambre_transport::Shared::new(super::TransportSettings::default()).unwrap();
        let [tcps, _] = shared.secure(&super::KeyPair::generate());
        super::subject(tcps)
    });
}
