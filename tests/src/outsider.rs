//! A client with its own key that sends arbitrary requests to nodes over encrypted connections.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use enjambre_core::model::membership::SignedMembership;
use enjambre_core::protocol::client::{CallError, call};
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::{
    Connection, Deadline, Dialer, Endpoint, KeyPair, PeerId, SessionId, Transport, TransportError,
};
use enjambre_swarm::membership::credentials::invitation::Invitation;
use enjambre_swarm::tracker_client::client::TrackerClient;
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(120));

/// A client that is not a member of any swarm until it joins one.
#[derive(Debug)]
pub struct Outsider {
    runtime: Runtime,
    key: KeyPair,
    transports: Vec<Arc<dyn Transport>>,
}

impl Outsider {
    /// Creates a client with a new key.
    ///
    /// # Errors
    /// Returns an error if the runtime or the transports cannot be created.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let key = KeyPair::generate();
        let transports = Shared::new(TransportSettings::default())?.secure(&key);
        let transports = transports.map(|transport| transport as Arc<dyn Transport>).to_vec();
        Ok(Self { runtime, key, transports })
    }

    /// Returns a dialer that shares no connection with earlier ones, so that the node sees a new connection.
    fn dialer(&self) -> Arc<Dialer> {
        Arc::new(Dialer::new(self.transports.clone()))
    }

    /// Returns the peer id of the client.
    pub fn peer(&self) -> PeerId {
        self.key.peer_id()
    }

    /// Joins a swarm with an invitation.
    ///
    /// # Errors
    /// Returns an error if the invitation is malformed or the tracker refuses it.
    pub fn join(&self, invitation: &str) -> Result<SignedMembership> {
        let invitation: Invitation = invitation.parse()?;
        let tracker = invitation.trackers.first().context("the invitation contains no tracker")?;
        let client = TrackerClient::new(self.dialer(), tracker.clone());
        Ok(self.runtime.block_on(client.join(invitation.secret))?)
    }

    /// Opens a session at a tracker, without endpoints.
    ///
    /// # Errors
    /// Returns an error if the tracker does not grant a session.
    pub fn session(&self, tracker: &str) -> Result<SessionId> {
        let client = TrackerClient::new(self.dialer(), tracker.parse()?);
        Ok(self.runtime.block_on(client.open_session(None, &self.key, &[]))?.1.session)
    }

    /// Opens a new connection to a node.
    ///
    /// # Errors
    /// Returns an error if the endpoint is invalid or the connection fails.
    pub fn connect(&self, endpoint: &str) -> Result<OutsiderConnection<'_>> {
        let endpoint: Endpoint = endpoint.parse()?;
        let connection = self.runtime.block_on(self.dialer().connect(&endpoint))?;
        Ok(OutsiderConnection { outsider: self, connection })
    }
}

/// A connection of an [`Outsider`].
#[derive(Debug)]
pub struct OutsiderConnection<'a> {
    outsider: &'a Outsider,
    connection: Arc<dyn Connection>,
}

impl OutsiderConnection<'_> {
    /// Sends a request and returns the reply.
    ///
    /// # Errors
    /// Returns a transport error or the error reply of the node.
    pub fn request(&self, request: &Request) -> Result<Reply, CallError> {
        self.outsider.runtime.block_on(call(&*self.connection, request, DEADLINE)).map(|(reply, _)| reply)
    }

    /// Sends a request and returns the code of the error reply.
    ///
    /// # Errors
    /// Returns an error if the node does not reply with an error.
    pub fn refusal(&self, request: &Request) -> Result<ErrorCode> {
        match self.request(request) {
            Err(CallError::Remote { error, .. }) => Ok(error.code),
            other => bail!("{request:?} was not refused: {other:?}"),
        }
    }

    /// Sends a request in the background.
    pub fn spawn_request(&self, request: Request) -> PendingReply {
        let connection = Arc::clone(&self.connection);
        let reply = async move { call(&*connection, &request, DEADLINE).await.map(|(reply, _)| reply) };
        PendingReply(self.outsider.runtime.spawn(reply))
    }

    /// Waits for a pending reply. Returns whether the connection was lost, or the request was refused because the membership
    /// was revoked.
    ///
    /// # Errors
    /// Returns an error if the request task panics.
    pub fn is_connection_lost(&self, pending: PendingReply) -> Result<bool> {
        let result = self.outsider.runtime.block_on(pending.0)?;
        Ok(match result {
            Err(CallError::Transport(TransportError::Lost { .. } | TransportError::Closed)) => true,
            // The error reply may be sent before the connection is closed.
            Err(error) => error.remote().is_some_and(|error| error.code == ErrorCode::Unauthorized),
            Ok(_) => false,
        })
    }
}

/// The reply to a request that was sent in the background.
#[derive(Debug)]
pub struct PendingReply(JoinHandle<Result<Reply, CallError>>);

/// Returns the number of open connections of this process to an IPv4 endpoint (Linux only).
///
/// # Errors
/// Returns an error if `/proc` cannot be read or the endpoint is invalid.
pub fn open_connections_to(endpoint: &str) -> Result<usize> {
    let endpoint: Endpoint = endpoint.parse()?;
    let address: SocketAddrV4 = format!("{}:{}", endpoint.host(), endpoint.port()).parse()?;
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let own_sockets: HashSet<String> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok())
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let open = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Remote address, state (01: established) and inode.
        matches!(&fields[..], [_, _, to, "01", _, _, _, _, _, inode, ..] if *to == remote && own_sockets.contains(*inode))
    };
    Ok(fs::read_to_string("/proc/self/net/tcp")?.lines().skip(1).filter(open).count())
}
