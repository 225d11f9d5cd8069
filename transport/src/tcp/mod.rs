//! The wire format of `tcp://`: length-prefixed frames.
//!
//! Both sides first send a preface ([`preface`]), then frames: a prefix with two lengths, a header, and a payload. Payloads
//! are read directly into their final buffers ([`reader`]), and written without a copy ([`writer`]).

#[cfg(test)]
pub(crate) mod fuzz;
mod link;
mod preface;
mod reader;
mod serve;
mod writer;

use std::sync::Arc;

use crate::guard::disconnect::Disconnect;
use crate::wire::{Accepted, Dialled, Server, Wire};
use link::TcpLink;

/// Length-prefixed frames.
#[derive(Debug, Default)]
pub(crate) struct Tcp;

impl Wire for Tcp {
    const PLAIN: &'static str = "tcp";
    const SECURE: &'static str = "tcps";
    type Link = TcpLink;

    async fn establish(&self, dialled: Dialled) -> Result<Arc<TcpLink>, Disconnect> {
        TcpLink::establish(dialled).await
    }

    async fn serve(server: &Server<Self>, accepted: Accepted) -> Result<(), Disconnect> {
        serve::serve(server, accepted).await
    }
}
