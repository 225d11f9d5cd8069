//! The guarded stream layer: it owns every public socket, on the listening and on the dialling side.
//!
//! Bytes pass through it between a public socket and the `zeromq` crate's private Unix socket. It admits connections
//! ([`admission`]), speaks the ZMTP handshake with both sides ([`handshake`]), and walks the frames of both directions
//! ([`frame`], [`splice`]), so that the crate sees nothing that is not well formed and within the limits. Whoever goes
//! past a limit is cut off and logged ([`cutoff`]); nobody else notices.

pub(crate) mod admission;
pub(crate) mod cutoff;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod socket;
pub(crate) mod splice;
