//! The wire format of `zmq://`: ZMTP 3, with a ROUTER for each accepted connection and a DEALER for each outgoing one.
//!
//! A message has the frames `[header]` or `[header][payload]`. The empty delimiter of a REQ is accepted and returned.

mod inner;
mod link;
mod outlet;
mod serve;

use std::sync::Arc;

use crate::guard::disconnect::Disconnect;
use crate::wire::{Accepted, Dialled, Server, Wire};
use inner::InnerListener;
use link::ZmqLink;

/// ZMTP, implemented by the `zeromq` crate behind the guard.
#[derive(Debug, Default)]
pub(crate) struct Zmq {
    inner_listener: InnerListener,
}

impl Wire for Zmq {
    const PLAIN: &'static str = "zmq";
    const SECURE: &'static str = "zmqs";
    type Link = ZmqLink;

    async fn establish(&self, dialled: Dialled) -> Result<Arc<ZmqLink>, Disconnect> {
        ZmqLink::establish(&self.inner_listener, dialled).await
    }

    async fn serve(server: &Server<Self>, accepted: Accepted) -> Result<(), Disconnect> {
        serve::serve(server, &server.parts.wire.inner_listener, accepted).await
    }
}
