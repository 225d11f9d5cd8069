//! What the end-to-end tests stand on: real processes of the binary `enjambre`, their folders, and content to move.
//!
//! Nothing in here knows how the product works inside. The tests see what a user sees: the command line, its
//! output and exit status, the files, and the wire ([`fake_provider`] and [`outsider`] speak it with `enjambre-core`, [`raw`]
//! by hand).
//! Every wait has a deadline; the one place that pauses is [`wait`].

pub mod binary;
pub mod content;
pub mod damage;
pub mod fake_provider;
pub mod figures;
pub mod fixture;
pub mod mount;
pub mod node;
pub mod outsider;
pub mod postgres;
pub mod power_cut;
pub mod process;
pub mod raw;
pub mod resident;
pub mod sim;
pub mod torture;
pub mod trend;
pub mod wait;
