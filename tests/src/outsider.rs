//! Somebody with a key of its own who asks nodes directly, as no program of ours would.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::PeerId;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::protocol::client::{CallError, ask};
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{Reply, Request, SessionId};
use enjambre_core::swarm::invitation::Invitation;
use enjambre_core::swarm::membership::SignedMembership;
use enjambre_core::tracker::client::TrackerClient;
use enjambre_core::transport::dialer::Dialer;
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Deadline, Transport};
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(120));

/// Asks over encrypted connections, in this process.
#[derive(Debug)]
pub struct Outsider {
    runtime: Runtime,
    key: KeyPair,
    transports: Vec<Arc<dyn Transport>>,
}

impl Outsider {
    /// Somebody whom nobody knows.
    ///
    /// # Errors
    /// If there is no runtime to be had.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let key = KeyPair::generate();
        let transports = Shared::new(TransportSettings::default())?.secure(&key);
        let transports = transports.map(|transport| transport as Arc<dyn Transport>).to_vec();
        Ok(Self { runtime, key, transports })
    }

    /// One that shares no connection with others: each is somebody new to the node that is asked.
    fn dialer(&self) -> Arc<Dialer> {
        Arc::new(Dialer::new(self.transports.clone()))
    }

    /// Its id.
    pub fn peer(&self) -> PeerId {
        self.key.peer_id()
    }

    /// Comes in by an invitation.
    ///
    /// # Errors
    /// If that is none, or the tracker does not let it in.
    pub fn join(&self, invitation: &str) -> Result<SignedMembership> {
        let invitation: Invitation = invitation.parse()?;
        let tracker = invitation.trackers.first().context("an invitation names a tracker")?;
        let client = TrackerClient::new(self.dialer(), tracker.clone());
        Ok(self.runtime.block_on(client.join(invitation.secret))?)
    }

    /// A session at a tracker where it is in, as somebody who offers nothing.
    ///
    /// # Errors
    /// If the tracker does not give it one.
    pub fn session(&self, tracker: &str) -> Result<SessionId> {
        let client = TrackerClient::new(self.dialer(), tracker.parse()?);
        Ok(self.runtime.block_on(client.hello(&self.key, &[]))?.1.session)
    }

    /// A new connection to a node.
    ///
    /// # Errors
    /// If that is not an endpoint that can be dialled.
    pub fn connect(&self, endpoint: &str) -> Result<Line<'_>> {
        let endpoint: Endpoint = endpoint.parse()?;
        let connection = self.runtime.block_on(self.dialer().connect(&endpoint))?;
        Ok(Line { outsider: self, connection })
    }
}

/// A connection of an [`Outsider`].
#[derive(Debug)]
pub struct Line<'a> {
    outsider: &'a Outsider,
    connection: Arc<dyn Connection>,
}

impl Line<'_> {
    /// What the node answers.
    ///
    /// # Errors
    /// What went wrong, or how it refused.
    pub fn ask(&self, request: &Request) -> Result<Reply, CallError> {
        self.outsider.runtime.block_on(ask(&*self.connection, request, DEADLINE)).map(|(reply, _)| reply)
    }

    /// How the node refuses.
    ///
    /// # Errors
    /// If it answers, or cannot be asked.
    pub fn refused(&self, request: &Request) -> Result<ErrorCode> {
        match self.ask(request) {
            Err(CallError::Remote { error, .. }) => Ok(error.code),
            other => bail!("{request:?} is not refused: {other:?}"),
        }
    }

    /// Asks in the background.
    pub fn asking(&self, request: Request) -> Asked {
        let connection = Arc::clone(&self.connection);
        let asked = async move { ask(&*connection, &request, DEADLINE).await.map(|(reply, _)| reply) };
        Asked(self.outsider.runtime.spawn(asked))
    }

    /// Whether the connection is lost before this is answered, or it is refused because the asker was thrown out.
    ///
    /// # Errors
    /// If asking panics.
    pub fn is_lost(&self, asked: Asked) -> Result<bool> {
        let answer = self.outsider.runtime.block_on(asked.0)?;
        Ok(match answer {
            Err(CallError::Transport(TransportError::Lost { .. } | TransportError::Closed)) => true,
            // The word of it may just get out before the connection is closed.
            Err(error) => error.remote().is_some_and(|error| error.code == ErrorCode::Unauthorized),
            Ok(_) => false,
        })
    }
}

/// A request that may still be under way.
#[derive(Debug)]
pub struct Asked(JoinHandle<Result<Reply, CallError>>);

/// How many connections of this process to an endpoint with an IPv4 address are open, as Linux sees it.
///
/// # Errors
/// If that cannot be found out.
pub fn open_connections_to(endpoint: &str) -> Result<usize> {
    let endpoint: Endpoint = endpoint.parse()?;
    let address: SocketAddrV4 = format!("{}:{}", endpoint.host(), endpoint.port()).parse()?;
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let ours: HashSet<String> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok())
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let open = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // The remote address, the state (01: established), and the inode.
        matches!(&fields[..], [_, _, to, "01", _, _, _, _, _, inode, ..] if *to == remote && ours.contains(*inode))
    };
    Ok(fs::read_to_string("/proc/self/net/tcp")?.lines().skip(1).filter(open).count())
}
