//! Requests and replies as plain frames on a TCP stream: the way that costs least.
//!
//! Both sides begin with a preface ([`preface`]); then come frames of a fixed prefix with two lengths, a header and a
//! payload. Payloads are read into the buffers in which they are verified and stored ([`reader`]), and written from where
//! they are ([`writer`]).

#[cfg(test)]
pub(crate) mod fuzz;
mod link;
mod preface;
mod reader;
mod serve;
mod writer;

use std::sync::Arc;

use crate::guard::cutoff::CutOff;
use crate::listener::{Accepted, Server};
use crate::wire::{Dialled, Wire};
use link::TcpLink;

/// Plain frames on the stream.
#[derive(Debug, Default)]
pub(crate) struct Tcp;

impl Wire for Tcp {
    const PLAIN: &'static str = "tcp";
    const SECURE: &'static str = "tcps";
    type Link = TcpLink;

    async fn dialled(self: Arc<Self>, dialled: Dialled) -> Result<Arc<TcpLink>, CutOff> {
        TcpLink::establish(dialled).await
    }

    async fn serve(server: &Server<Self>, accepted: Accepted) -> Result<(), CutOff> {
        serve::serve(server, accepted).await
    }
}
