//! The PostgreSQL backend as a plug-in: conformance, kills, opening, shared schemas, TLS and outages of the server.
//!
//! The tests start their own servers. They are skipped if PostgreSQL is not installed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod conformance;
mod crash;
mod fixture;
mod interrupted_commits;
mod layers;
mod opening;
mod outages;
mod proxy;
mod replication;
mod shared_schema;
mod tls;
