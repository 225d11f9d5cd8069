//! The etcd backend as a plug-in: conformance, limits of the server, pages, crashes, quota, login and TLS.
//!
//! The tests start their own servers. They are skipped if etcd is not installed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod conformance;
mod crash;
mod fixture;
mod login;
mod opening;
mod quota;
mod scans;
