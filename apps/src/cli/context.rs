//! The arguments that all commands share.

use std::sync::Arc;

use enjambre_control::Failure;
use enjambre_core::{Endpoint, KeyPair};
use enjambre_swarm::tracker_client::trackers::Trackers;
use tokio_util::sync::CancellationToken;

use super::output::{notice_on_terminal, notify_if_silent};
use crate::access::own_uid;
use crate::config::load::{Loaded, Sources};
use crate::config::sections::NodeKind;
use crate::data_dir::other_owner;
use crate::logging::Log;
use crate::node_key;
use crate::registry::Registry;
use crate::tracker::endpoints_file;

pub(crate) struct Context<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) loaded: Loaded,
    /// The sources of `loaded`, for child processes with the same configuration.
    pub(crate) sources: Sources,
    pub(crate) log: Arc<Log>,
    /// Cancelled by a signal.
    pub(crate) stop: CancellationToken,
}

impl Context<'_> {
    /// Runs a future until it completes or a signal interrupts it.
    pub(super) async fn run<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.stop.run_until_cancelled(work).await.unwrap_or_else(|| Err(Failure::interrupted("interrupted")))
    }

    /// States on a terminal that the command waits for trackers, if that takes long and `is_silent`.
    pub(super) async fn wait_for_trackers<T>(
        &self,
        work: impl Future<Output = T>,
        is_silent: impl Fn() -> bool,
    ) -> T {
        notify_if_silent(work, is_silent, || notice_on_terminal("waiting for trackers to reply")).await
    }

    /// Returns the trackers of the peer, or the configured tracker itself.
    pub(super) async fn trackers(&self) -> Result<Arc<Trackers>, Failure> {
        let config = &self.loaded.config;
        let folder = self.loaded.data_dir(self.loaded.kind);
        // In an open swarm every key is accepted, so that another user needs no access to the key of the node.
        let is_key_private =
            own_uid() != 0 && other_owner(&folder).is_some() && !self.loaded.is_invite_only();
        let key = if is_key_private { None } else { node_key::load(&folder).await? };
        // A node that was never started has no key yet and uses a temporary one.
        let key = key.unwrap_or_else(KeyPair::generate);
        let dialer = self.registry.dialer(&self.loaded, &key)?;
        let endpoints: Vec<Endpoint> = match self.loaded.kind {
            NodeKind::Peer => config.peer.trackers.clone(),
            NodeKind::Tracker => {
                let listen = endpoints_file::effective(&config.transport.listen, &folder).await;
                let dialed: Vec<Endpoint> = listen.iter().map(endpoints_file::dialable).collect();
                dialer.preferred(key.peer_id(), &dialed)
            }
        };
        Ok(Arc::new(Trackers::new(&dialer, endpoints)))
    }
}
