//! Asks one tracker.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::TrackerError;
use crate::model::endpoint::Endpoint;
use crate::model::id::FileId;
use crate::model::identity::KeyPair;
use crate::model::record::{FileRecord, Offer, Provider, Publication};
use crate::protocol::client::{CallError, ask, unexpected};
use crate::protocol::error::ErrorCode;
use crate::protocol::message::{
    CatalogueId, HelloProof, KnownSwarm, MAX_OFFERS, Reply, Request, SessionId, TrackerStatus, Welcome,
};
use crate::swarm::invitation::Secret;
use crate::swarm::membership::SignedMembership;
use crate::transport::dialer::Dialer;
use crate::transport::{Connection, Deadline};

/// How long a tracker has for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// For how long a tracker that was silent is not waited for where others answer.
const SILENT: Duration = Duration::from_secs(30);

/// One tracker.
#[derive(Debug)]
pub struct TrackerClient {
    dialer: Arc<Dialer>,
    endpoint: Endpoint,
    connection: Mutex<Option<Arc<dyn Connection>>>,
    catalogue: Mutex<Option<CatalogueId>>,
    silent: Mutex<Option<Instant>>,
}

/// What a tracker tells of a swarm by invitation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwarmNews {
    /// The next membership.
    pub membership: Option<SignedMembership>,
    /// The next signed page of revocations.
    pub revocations: Option<Bytes>,
    /// Whether there is another one behind it.
    pub more: bool,
}

macro_rules! expect {
    ($connection:expr, $reply:expr, $pattern:pat => $value:expr) => {
        match $reply {
            $pattern => Ok($value),
            _ => Err(unexpected($connection)),
        }
    };
}

impl TrackerClient {
    /// The tracker at this endpoint. Nothing is dialled yet.
    pub fn new(dialer: Arc<Dialer>, endpoint: Endpoint) -> Self {
        Self {
            dialer,
            endpoint,
            connection: Mutex::default(),
            catalogue: Mutex::default(),
            silent: Mutex::default(),
        }
    }

    /// Where the tracker is.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn connection(&self) -> Result<Arc<dyn Connection>, TrackerError> {
        if let Some(connection) = &*self.connection.lock() {
            return Ok(Arc::clone(connection));
        }
        let new = self.dialer.connect(&self.endpoint).await;
        let new = new.map_err(|error| TrackerError::from_call(&self.endpoint, &error.into()))?;
        Ok(Arc::clone(self.connection.lock().get_or_insert(new)))
    }

    async fn call<T>(
        &self,
        request: &Request,
        read: impl FnOnce(&dyn Connection, Reply) -> Result<T, CallError>,
    ) -> Result<T, TrackerError> {
        let connection = self.connection().await?;
        let result = match ask(&*connection, request, Deadline::Total(DEADLINE)).await {
            Ok((reply, _)) => {
                *self.silent.lock() = None;
                read(&*connection, reply)
            }
            Err(error) => Err(error),
        };
        result.map_err(|error| {
            if error.remote().is_none() {
                // Another tracker may be there next time.
                *self.catalogue.lock() = None;
                if matches!(error, CallError::Transport(crate::transport::error::TransportError::Closed)) {
                    *self.connection.lock() = None;
                }
            }
            TrackerError::from_call(&self.endpoint, &error)
        })
    }

    /// Nobody wanted to wait for its answer any longer.
    pub(super) fn set_silent(&self) {
        *self.silent.lock() = Some(Instant::now());
    }

    /// Whether it was silent a moment ago.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.lock().is_some_and(|since| since.elapsed() < SILENT)
    }

    /// Which catalogue the tracker serves; asked once for as long as the tracker answers.
    pub async fn catalogue(&self) -> Result<CatalogueId, TrackerError> {
        let known = *self.catalogue.lock();
        match known {
            Some(known) => Ok(known),
            None => self.learn_catalogue().await,
        }
    }

    /// Which catalogue the tracker serves, asked anew.
    pub async fn learn_catalogue(&self) -> Result<CatalogueId, TrackerError> {
        let request = Request::Hello { proof: None };
        let catalogue = self
            .call(&request, |at, reply| expect!(at, reply, Reply::Hello { catalogue, .. } => catalogue))
            .await?;
        *self.catalogue.lock() = Some(catalogue);
        Ok(catalogue)
    }

    /// Begins a session; returns the catalogue that it is one with.
    pub async fn hello(
        &self,
        key: &KeyPair,
        endpoints: &[Endpoint],
    ) -> Result<(CatalogueId, Welcome), TrackerError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.hello_once(key, endpoints).await {
                // The connection may have been lost between the two steps, and the nonce with it.
                Err(error) if error.code() == Some(ErrorCode::Unauthorized) && attempt < 2 => {}
                result => return result,
            }
        }
    }

    async fn hello_once(
        &self,
        key: &KeyPair,
        endpoints: &[Endpoint],
    ) -> Result<(CatalogueId, Welcome), TrackerError> {
        let first = Request::Hello { proof: None };
        let (catalogue, nonce) = self
            .call(
                &first,
                |at, reply| expect!(at, reply, Reply::Hello { catalogue, nonce, .. } => (catalogue, nonce)),
            )
            .await?;
        let signature = key.sign(&HelloProof::signed_bytes(catalogue, nonce, endpoints));
        let proof = HelloProof { key: key.public(), nonce, signature, endpoints: endpoints.to_vec() };
        let second = Request::Hello { proof: Some(proof) };
        let welcome = self
            .call(
                &second,
                |at, reply| expect!(at, reply, Reply::Hello { welcome: Some(welcome), .. } => welcome),
            )
            .await?;
        *self.catalogue.lock() = Some(catalogue);
        Ok((catalogue, welcome))
    }

    /// Publishes a file; durable on return. Returns the version of the name, and whether it is new.
    pub async fn publish(
        &self,
        session: SessionId,
        publication: &Publication,
    ) -> Result<(u64, bool), TrackerError> {
        let Publication { name, id, size, kind } = publication.clone();
        let request = Request::Publish { session, name, id, size, kind };
        self.call(
            &request,
            |at, reply| expect!(at, reply, Reply::Published { version, new } => (version, new)),
        )
        .await
    }

    /// Announces offers, in as many requests as they take. Returns the files that the tracker does not know.
    pub async fn announce(&self, session: SessionId, offers: &[Offer]) -> Result<Vec<FileId>, TrackerError> {
        let mut all = Vec::new();
        for chunk in offers.chunks(MAX_OFFERS) {
            let request = Request::Announce { session, offers: chunk.to_vec() };
            all.extend(
                self.call(&request, |at, reply| expect!(at, reply, Reply::Announced { unknown } => unknown))
                    .await?,
            );
        }
        Ok(all)
    }

    /// Takes offers back, in as many requests as they take.
    pub async fn withdraw(&self, session: SessionId, ids: &[FileId]) -> Result<(), TrackerError> {
        for chunk in ids.chunks(MAX_OFFERS) {
            self.done(&Request::Withdraw { session, ids: chunk.to_vec() }).await?;
        }
        Ok(())
    }

    async fn done(&self, request: &Request) -> Result<(), TrackerError> {
        self.call(request, |at, reply| expect!(at, reply, Reply::Done => ())).await
    }

    /// Lives for one more lease.
    pub async fn renew(&self, session: SessionId) -> Result<(), TrackerError> {
        self.done(&Request::Renew { session, known: None }).await
    }

    /// The same in a swarm by invitation. Returns what is news of it.
    pub async fn renew_membership(
        &self,
        session: SessionId,
        known: KnownSwarm,
    ) -> Result<SwarmNews, TrackerError> {
        let request = Request::Renew { session, known: Some(known) };
        self.call(&request, |at, reply| match reply {
            Reply::Renewed { membership, revocations, more } => {
                Ok(SwarmNews { membership, revocations, more })
            }
            // One that lets everybody in.
            Reply::Done => Ok(SwarmNews::default()),
            _ => Err(unexpected(at)),
        })
        .await
    }

    /// Comes into a swarm by invitation.
    pub async fn join(&self, secret: Secret) -> Result<SignedMembership, TrackerError> {
        self.call(
            &Request::Join { secret },
            |at, reply| expect!(at, reply, Reply::Joined { membership } => membership),
        )
        .await
    }

    /// Goes away for now and ends the session.
    pub async fn leave(&self, session: SessionId) -> Result<(), TrackerError> {
        self.done(&Request::Leave { session }).await
    }

    /// Asks the tracker to keep a copy. Returns how many bytes it has, and whether it holds the file whole.
    pub async fn pin(&self, session: SessionId, id: FileId) -> Result<(u64, bool), TrackerError> {
        let request = Request::Pin { session, id };
        self.call(&request, |at, reply| expect!(at, reply, Reply::Pin { have, held } => (have, held))).await
    }

    /// The copy is no longer needed.
    pub async fn unpin(&self, session: SessionId, id: FileId) -> Result<(), TrackerError> {
        self.done(&Request::Unpin { session, id }).await
    }

    /// The file of a name, an id or a prefix of an id.
    pub async fn find(&self, query: &str) -> Result<FileRecord, TrackerError> {
        let request = Request::Find { query: query.to_owned() };
        self.call(&request, |at, reply| expect!(at, reply, Reply::Find { file } => file)).await
    }

    /// Who offers the file now.
    pub async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, TrackerError> {
        let request = Request::Providers { id: *id };
        self.call(&request, |at, reply| expect!(at, reply, Reply::Providers { providers } => providers)).await
    }

    /// A page of the catalogue and where the next one begins.
    pub async fn list(
        &self,
        pattern: &str,
        cursor: Option<Vec<u8>>,
        limit: u32,
    ) -> Result<(Vec<FileRecord>, Option<Vec<u8>>), TrackerError> {
        let request = Request::List { pattern: pattern.to_owned(), cursor, limit };
        self.call(&request, |at, reply| expect!(at, reply, Reply::List { files, cursor } => (files, cursor)))
            .await
    }

    /// How the tracker does.
    pub async fn status(&self) -> Result<TrackerStatus, TrackerError> {
        self.call(&Request::Status, |at, reply| expect!(at, reply, Reply::TrackerStatus(status) => status))
            .await
    }
}
