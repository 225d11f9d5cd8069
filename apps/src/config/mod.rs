//! The configuration: sections with defaults, and the layers they are read from.
//!
//! Defaults, then a file, then the environment (`ENJAMBRE__SECTION__KEY`), then `--set KEY=VALUE`. What is wrong
//! is said with the key, the value and the layer that it came from. What a storage backend's own table means is
//! not known here; see [`crate::registry`].

pub mod error;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod keys;
pub mod layer;
pub mod load;
pub mod secret;
pub mod sections;
pub mod value;
