//! Attacks on what a running tracker and a running peer have: connections, memory, file handles, time, names and folders.
//!
//! Each runs against real processes from other addresses of this machine, while somebody honest looks things up and
//! downloads, and is served. What a process may use meanwhile has a bound, the log tells who was cut off without being
//! flooded, and afterwards all of it is released. `docs/SECURITY.md` has the list. Rules of the framing that single
//! connections break are in `hostile.rs` and with the transport.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

mod connections;
mod escapes;
mod floods;
mod handshakes;
mod nonsense;
mod scene;
mod slow;
