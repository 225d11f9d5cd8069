//! The guarded stream layer: it owns every public socket, on the listening and on the dialling side.
//!
//! It admits connections ([`admission`]), encrypts and authenticates them where that is asked for ([`secure`], [`stream`]), bounds the requests that are in flight ([`gate`]), ends connections that are
//! quiet for too long ([`ending`]), and logs who was cut off and why ([`cutoff`]). For ZeroMQ bytes pass through it
//! between a public socket and the `zeromq` crate's private Unix socket: it speaks the ZMTP handshake with both sides
//! ([`handshake`]), and walks the frames of both directions ([`frame`], [`splice`]), so that the crate sees nothing that
//! is not well formed and within the limits; payloads it carries itself. Whoever goes past a limit is cut off; nobody else notices.

pub(crate) mod admission;
pub(crate) mod cutoff;
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

use enjambre_core::buffers::BufferPool;
use enjambre_core::transport::budget::ReplyBudget;

use crate::open_files;
use crate::settings::{InvalidSetting, TransportSettings};
use admission::{Admission, LEAVING};
use cutoff::CutOffLog;

/// What all listeners and connections share.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) settings: TransportSettings,
    pub(crate) admission: Arc<Admission>,
    pub(crate) budget: Arc<ReplyBudget>,
    pub(crate) log: CutOffLog,
    /// For the payloads of replies.
    pub(crate) buffers: BufferPool,
}

/// How many bytes of payload buffers are kept while nobody uses them.
const KEPT: usize = 8 << 20;

impl Guard {
    /// Fails where the settings make no sense.
    pub(crate) fn new(settings: TransportSettings) -> Result<Self, InvalidSetting> {
        settings.validate()?;
        // Those that lost their places are still open for a moment.
        let allowed = open_files::connections_allowed();
        let connections = settings.connections.min(allowed.saturating_sub(LEAVING).max(allowed / 2).max(1));
        Ok(Self {
            admission: Admission::new(connections, settings.connections_per_address),
            budget: ReplyBudget::new(settings.queued_in_all, settings.queued_per_connection),
            log: CutOffLog::default(),
            buffers: BufferPool::new(KEPT),
            settings,
        })
    }
}
