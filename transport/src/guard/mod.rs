//! The guarded stream layer. It owns all public sockets, on the answering and on the requesting side.
//!
//! It limits connections ([`connection_limiter`]), encrypts and authenticates streams ([`secure`], [`stream`]), limits
//! outstanding requests ([`gate`]), closes idle and stalled connections ([`ending`]), and logs the reasons
//! ([`disconnect`]). For ZeroMQ, it forwards bytes between a public socket and a private Unix socket of the `zeromq` crate:
//! it performs the ZMTP handshake with both sides ([`handshake`]) and parses the frames of both directions ([`frame`],
//! [`splice`]), so that the crate receives only valid frames within the limits. It transfers payloads by itself. A violation
//! closes the connection of the violator and affects no other one.

pub(crate) mod connection_limiter;
pub(crate) mod disconnect;
pub(crate) mod ending;
pub(crate) mod frame;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod gate;
pub(crate) mod handshake;
pub(crate) mod secure;
pub(crate) mod socket;
pub(crate) mod splice;
pub(crate) mod stream;

use std::sync::Arc;

use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::transport::budget::ReplyBudget;

use crate::open_files::{self, OPEN_FILES_SETTING};
use crate::settings::{InvalidSetting, TransportSettings};
use connection_limiter::{ConnectionLimiter, MAX_CLOSING};
use disconnect::DisconnectLog;

/// The state that all listeners and connections share.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) settings: TransportSettings,
    pub(crate) limiter: Arc<ConnectionLimiter>,
    pub(crate) budget: Arc<ReplyBudget>,
    pub(crate) log: DisconnectLog,
    /// For the payloads of replies.
    pub(crate) buffers: BufferPool,
}

/// Maximum number of bytes in unused payload buffers.
const UNUSED_BUFFERS: usize = 8 << 20;

impl Guard {
    /// Validates the settings.
    pub(crate) fn new(settings: TransportSettings) -> Result<Self, InvalidSetting> {
        settings.validate()?;
        // Replaced connections remain open for a moment.
        let allowed = open_files::connections_allowed();
        let allowed = allowed.saturating_sub(MAX_CLOSING).max(allowed / 2).max(1);
        let (connections, setting) = if allowed < settings.connections {
            (allowed, OPEN_FILES_SETTING)
        } else {
            (settings.connections, "transport.limits.connections")
        };
        Ok(Self {
            limiter: ConnectionLimiter::new(connections, setting, settings.connections_per_address),
            budget: ReplyBudget::new(settings.queued_total, settings.queued_per_connection),
            log: DisconnectLog::default(),
            buffers: BufferPool::new(UNUSED_BUFFERS),
            settings,
        })
    }
}
