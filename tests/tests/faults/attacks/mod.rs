//! Attacks on the resources of a running tracker and a running peer: connections, memory, file handles, time, names and
//! directories.
//!
//! Each attack runs against real processes from other loopback addresses while an honest client looks up and downloads files.
//! The resource usage of a process is bounded, disconnected clients are logged at a bounded rate, and all resources are released
//! afterwards. `docs/SECURITY.md` lists the attacks. `hostile.rs` and the tests of the transport cover framing violations of
//! single connections.

mod connections;
mod escapes;
mod floods;
mod handshakes;
mod invalid_headers;
mod scene;
mod slow;
