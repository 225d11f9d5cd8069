//! Support code of the end-to-end tests: processes of the binary `enjambre`, their directories, and test content.
//!
//! The process tests use only external interfaces: command line, output, exit status, files and wire protocol.
//! [`fake_provider`] and [`outsider`] encode messages with `enjambre-core`; [`raw`] writes them byte by byte. [`sim`] runs
//! the library crates in one process. Every wait has a timeout.

pub mod binary;
pub mod content;
pub mod damage;
pub mod etcd;
pub mod fake_provider;
pub mod fixture;
pub mod http;
pub mod in_process_peer;
pub mod mount;
pub mod node;
pub mod outsider;
pub mod postgres;
pub mod power_cut;
pub mod process;
pub mod process_stats;
pub mod prometheus;
pub mod raw;
mod server;
pub mod setup;
pub mod several_trackers;
pub mod sim;
pub mod skip;
pub mod torture;
pub mod trend;
pub mod wait;
