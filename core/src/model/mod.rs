//! Values without I/O: ids, piece layouts, manifests, bitmaps, endpoints, collections, credentials.
//!
//! Every id and index has its own type. Constructors and parsers validate, so the rest of the code handles only valid values.

pub mod bitmap;
pub(crate) mod bytes;
pub mod cbor;
pub mod collection;
pub mod endpoint;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod gap;
pub mod id;
pub mod identity;
pub mod layout;
pub mod manifest;
pub mod manifest_builder;
pub mod membership;
pub mod name;
pub mod network;
pub mod record;
pub mod secret;
pub mod session;
pub mod time;
