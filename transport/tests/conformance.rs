//! The conformance kit over `zmq://`, on loopback.

use enjambre_core::transport::MessageLimits;
use enjambre_core::transport::conformance::Subject;
use enjambre_transport::settings::TransportSettings;

enjambre_core::transport_conformance!(Subject {
    transport: enjambre_transport::zmq(TransportSettings::default()).unwrap(),
    endpoint: "zmq://127.0.0.1:0".parse().unwrap(),
    limits: MessageLimits::default(),
    guard: Box::new(()),
});
