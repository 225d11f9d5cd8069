//! Values without I/O: ids, the piece layout, manifests, bitmaps, endpoints, collections.
//!
//! Every id and index is a type of its own, and what can be wrong is checked when the value is made, so that
//! the rest of the code passes around values that hold.

pub mod bitmap;
pub mod collection;
pub mod endpoint;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod id;
pub mod identity;
pub mod layout;
pub mod manifest;
pub mod name;
pub mod record;
