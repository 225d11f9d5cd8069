//! Requests and replies over ZeroMQ: a ROUTER behind each listener, a DEALER behind each connection that is made.
//!
//! Frames are `[header]` or `[header][payload]`; the empty delimiter of a REQ is accepted and returned.

mod inner;
mod link;
mod outlet;
mod serve;

use std::sync::Arc;

use crate::guard::cutoff::CutOff;
use crate::listener::{Accepted, Server};
use crate::wire::{Dialled, Wire};
use inner::Doorway;
use link::ZmqLink;

/// ZMTP on the stream, spoken by the `zeromq` crate behind the guard.
#[derive(Debug, Default)]
pub(crate) struct Zmq {
    doorway: Doorway,
}

impl Wire for Zmq {
    const PLAIN: &'static str = "zmq";
    const SECURE: &'static str = "zmqs";
    type Link = ZmqLink;

    async fn dialled(self: Arc<Self>, dialled: Dialled) -> Result<Arc<ZmqLink>, CutOff> {
        ZmqLink::establish(&self.doorway, dialled).await
    }

    async fn serve(server: &Server<Self>, accepted: Accepted) -> Result<(), CutOff> {
        serve::serve(server, accepted).await
    }
}
