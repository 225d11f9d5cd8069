//! Deterministic simulation of swarms: the library crates on one thread, with memory storage, memory transport and faults.
//!
//! A [`world`] contains trackers, peers, their disks and a network, under the paused clock of tokio. A random generator
//! chooses the [`workload`] and the faults: crashes, power cuts, full disks and network partitions. Then the faults end, and
//! [`quiescence`] checks the guarantees. A seed always produces the same [`trace`]. `docs/SIMULATION.md` describes the scope.

pub mod clock;
pub mod faults;
pub mod flaw;
pub mod link;
pub mod malicious_tracker;
pub mod model;
pub mod peer;
pub mod quiescence;
pub mod recovery;
mod replicas;
pub mod responder;
pub mod run;
pub mod site;
mod slow_providers;
mod stranger;
pub mod trace;
pub mod tracker;
pub mod workload;
pub mod world;
