//! The program `enjambre`, as a library for those who add a storage backend or a transport of their own.

pub mod config;
pub mod logging;
