//! The program `enjambre`, as a library for those who add a storage backend or a transport of their own.

pub mod config;
pub mod control;
pub mod data_dir;
pub mod failure;
pub mod logging;
pub mod node_key;
pub mod registry;
pub mod shutdown;
