//! Serves piece hashes, bitmaps, pieces and small files of the library to other peers.
//!
//! Service is fair among connections: each one has a few pieces in preparation at a time, connections take turns at the
//! upload limit, and connections from one address occupy at most half of the slots that others leave free. Memory is
//! bounded: a reply's bytes are reserved at the transport before the piece is read. Requests without a free slot get the
//! reply `busy` with the time to retry.

mod long_poll;
mod service;
mod slots;
pub(crate) mod super_seeding;

pub use service::Seeder;
