//! The configuration: sections with defaults, and the layers that they are merged from.
//!
//! The layers, in increasing precedence: defaults, a file, the environment (`ENJAMBRE__SECTION__KEY`), and
//! `--set KEY=VALUE`. Errors name the key, the value and the layer. [`crate::registry`] checks the tables of the
//! storage backends.

pub(crate) mod effective;
pub(crate) mod error;
#[cfg(test)]
pub(crate) mod fuzz;
mod keys;
mod layer;
pub(crate) mod load;
mod secret;
pub mod sections;
pub mod value;
