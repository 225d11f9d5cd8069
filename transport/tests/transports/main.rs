//! Tests of all transports over loopback.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod conformance;
mod fixture;
mod hostile;
mod hostile_zmq;
mod identity;
mod raw_protocol;
mod raw_tcp;
mod raw_tls;
mod raw_zmtp;
