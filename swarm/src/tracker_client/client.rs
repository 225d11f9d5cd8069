//! Requests to one tracker.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::TrackerError;
use enjambre_core::model::membership::SignedMembership;
use enjambre_core::model::secret::Secret;
use enjambre_core::protocol::client::{CallError, call, unexpected};
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::protocol::message::{
    MAX_ENDPOINTS, MAX_OFFERS, MembershipState, Nonce, PinStatus, Reply, Request, SessionGrant, SessionProof,
    TrackerStatus,
};
use enjambre_core::{
    CatalogueId, Connection, Deadline, Dialer, Endpoint, FileId, FileRecord, Gap, KeyPair, Offer, Provider,
    Publication, SessionId, TransportError, UnixMillis,
};

/// The time limit of a request.
const DEADLINE: Duration = Duration::from_secs(10);

/// The time during which other trackers are preferred to an unresponsive one.
const UNRESPONSIVE_TIME: Duration = Duration::from_secs(30);

/// A client of one tracker.
#[derive(Debug)]
pub struct TrackerClient {
    dialer: Arc<Dialer>,
    endpoint: Endpoint,
    connection: Mutex<Option<Arc<dyn Connection>>>,
    catalogue: Mutex<Option<CatalogueId>>,
    unresponsive_since: Mutex<Option<Instant>>,
}

/// The reply to a renewal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewal {
    /// The time of the renewal, by the clock of the tracker.
    pub now: UnixMillis,
    /// The last periods whose writes the catalogue may lack.
    pub gaps: Vec<Gap>,
    /// The endpoints that other peers receive.
    pub endpoints: Vec<Endpoint>,
    /// The changes of the membership state.
    pub membership: MembershipRenewal,
}

/// The changes of the membership state in an invite-only swarm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MembershipRenewal {
    /// A new membership of the peer.
    pub membership: Option<SignedMembership>,
    /// The next signed page of revocations.
    pub revocations: Option<Bytes>,
    /// Whether another page follows.
    pub more: bool,
}

/// Reads the expected reply.
macro_rules! expect {
    ($pattern:pat => $value:expr) => {
        |reply: Reply| match reply {
            $pattern => Some($value),
            _ => None,
        }
    };
}

impl TrackerClient {
    /// A client of the tracker at this endpoint. It connects with the first request.
    pub fn new(dialer: Arc<Dialer>, endpoint: Endpoint) -> Self {
        Self {
            dialer,
            endpoint,
            connection: Mutex::default(),
            catalogue: Mutex::default(),
            unresponsive_since: Mutex::default(),
        }
    }

    /// The endpoint of the tracker.
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
        read: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, TrackerError> {
        let connection = self.connection().await?;
        let result = match call(&*connection, request, Deadline::Total(DEADLINE)).await {
            Ok((reply, _)) => {
                *self.unresponsive_since.lock() = None;
                read(reply).ok_or_else(|| unexpected(&*connection))
            }
            Err(error) => Err(error),
        };
        result.map_err(|error| {
            if error.remote().is_none() {
                // Another tracker may listen there next time.
                *self.catalogue.lock() = None;
                if matches!(error, CallError::Transport(TransportError::Closed)) {
                    *self.connection.lock() = None;
                }
            }
            TrackerError::from_call(&self.endpoint, &error)
        })
    }

    /// Records that a request timed out.
    pub(super) fn set_unresponsive(&self) {
        *self.unresponsive_since.lock() = Some(Instant::now());
    }

    /// Returns whether a request timed out recently, without a reply since.
    pub(super) fn is_unresponsive(&self) -> bool {
        self.unresponsive_since.lock().is_some_and(|since| since.elapsed() < UNRESPONSIVE_TIME)
    }

    /// Returns the catalogue of the tracker, cached while the tracker replies.
    pub async fn catalogue(&self) -> Result<CatalogueId, TrackerError> {
        let known = *self.catalogue.lock();
        match known {
            Some(known) => Ok(known),
            None => self.query_catalogue().await,
        }
    }

    /// Requests the catalogue of the tracker.
    pub async fn query_catalogue(&self) -> Result<CatalogueId, TrackerError> {
        Ok(self.query_nonce().await?.0)
    }

    /// Requests the catalogue of the tracker and a nonce for a session.
    async fn query_nonce(&self) -> Result<(CatalogueId, Nonce), TrackerError> {
        let request = Request::OpenSession { proof: None };
        let read = expect!(Reply::OpenSession { catalogue, nonce, .. } => (catalogue, nonce));
        let (catalogue, nonce) = self.call(&request, read).await?;
        *self.catalogue.lock() = Some(catalogue);
        Ok((catalogue, nonce))
    }

    /// Opens a session. Returns its catalogue and the grant. Fails if the tracker serves another catalogue than the `expected`
    /// one, for example after a restart with another database: the caller would record the session for a wrong catalogue.
    ///
    /// This is no defence against a malicious tracker, which chooses the catalogue that it names. The signature contains
    /// the id of the tracker, if the endpoint does.
    pub async fn open_session(
        &self,
        expected: Option<CatalogueId>,
        key: &KeyPair,
        endpoints: &[Endpoint],
    ) -> Result<(CatalogueId, SessionGrant), TrackerError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_open_session(expected, key, endpoints).await {
                // The nonce is lost if the connection was lost between the two steps.
                Err(error) if error.code() == Some(ErrorCode::Unauthorized) && attempt < 2 => {}
                result => return result,
            }
        }
    }

    async fn try_open_session(
        &self,
        expected: Option<CatalogueId>,
        key: &KeyPair,
        endpoints: &[Endpoint],
    ) -> Result<(CatalogueId, SessionGrant), TrackerError> {
        let (catalogue, nonce) = self.query_nonce().await?;
        if expected.is_some_and(|expected| expected != catalogue) {
            return Err(TrackerError::OtherCatalogue { endpoint: self.endpoint.clone() });
        }
        let tracker = self.endpoint.id();
        let signature = key.sign(&SessionProof::signed_bytes(tracker, catalogue, nonce, endpoints));
        let proof = SessionProof { key: key.public(), nonce, signature, endpoints: endpoints.to_vec() };
        let request = Request::OpenSession { proof: Some(proof) };
        let read = expect!(Reply::OpenSession { grant: Some(grant), .. } => grant);
        let grant = self.call(&request, read).await?;
        Ok((catalogue, grant))
    }

    /// Publishes a file. Durable on return. Returns the version of the name and whether it is new.
    pub async fn publish(
        &self,
        session: SessionId,
        publication: &Publication,
    ) -> Result<(u64, bool), TrackerError> {
        self.publish_or_repeat(session, publication, None).await
    }

    /// As [`Self::publish`]. With `again`, the version of an earlier publication, the catalogue adds no version if the name
    /// has this or a higher one with the file.
    pub async fn publish_or_repeat(
        &self,
        session: SessionId,
        publication: &Publication,
        again: Option<u64>,
    ) -> Result<(u64, bool), TrackerError> {
        let Publication { name, id, size, kind } = publication.clone();
        let request = Request::Publish { session, name, id, size, kind, again };
        self.call(&request, expect!(Reply::Published { version, new } => (version, new))).await
    }

    /// Announces offers, split into several requests if necessary. Returns the files that the catalogue does not contain.
    pub async fn announce(&self, session: SessionId, offers: &[Offer]) -> Result<Vec<FileId>, TrackerError> {
        let mut all = Vec::new();
        for chunk in offers.chunks(MAX_OFFERS) {
            let request = Request::Announce { session, offers: chunk.to_vec() };
            all.extend(self.call(&request, expect!(Reply::Announced { unknown } => unknown)).await?);
        }
        Ok(all)
    }

    /// Withdraws offers, split into several requests if necessary.
    pub async fn withdraw(&self, session: SessionId, ids: &[FileId]) -> Result<(), TrackerError> {
        for chunk in ids.chunks(MAX_OFFERS) {
            self.done(&Request::Withdraw { session, ids: chunk.to_vec() }).await?;
        }
        Ok(())
    }

    async fn done(&self, request: &Request) -> Result<(), TrackerError> {
        self.call(request, expect!(Reply::Done => ())).await
    }

    /// Renews the lease of a session. In an invite-only swarm it returns the changes since the state `known`.
    pub async fn renew(
        &self,
        session: SessionId,
        known: Option<MembershipState>,
    ) -> Result<Renewal, TrackerError> {
        let request = Request::Renew { session, membership: known };
        self.call(&request, |reply| match reply {
            Reply::Renewed { now_ms: now, gaps, endpoints, membership, revocations, more } => {
                let membership = MembershipRenewal { membership, revocations, more };
                Some(Renewal { now, gaps, endpoints, membership })
            }
            _ => None,
        })
        .await
    }

    /// Joins an invite-only swarm with the secret of an invitation.
    pub async fn join(&self, secret: Secret) -> Result<SignedMembership, TrackerError> {
        self.call(&Request::Join { secret }, expect!(Reply::Joined { membership } => membership)).await
    }

    /// Ends the session.
    pub async fn leave(&self, session: SessionId) -> Result<(), TrackerError> {
        self.done(&Request::Leave { session }).await
    }

    /// Pins a file at the tracker. Returns the number of bytes stored so far and whether the replica is complete.
    pub async fn pin(&self, session: SessionId, id: FileId) -> Result<(u64, bool), TrackerError> {
        let request = Request::Pin { session, id };
        self.call(&request, expect!(Reply::Pin { stored, complete } => (stored, complete))).await
    }

    /// Unpins a file.
    pub async fn unpin(&self, session: SessionId, id: FileId) -> Result<(), TrackerError> {
        self.done(&Request::Unpin { session, id }).await
    }

    /// Returns a page of the pins of the peer and the cursor of the next one.
    pub async fn pins(
        &self,
        session: SessionId,
        after: Option<FileId>,
    ) -> Result<(Vec<PinStatus>, Option<FileId>), TrackerError> {
        let request = Request::Pins { session, after };
        self.call(&request, expect!(Reply::Pins { pins, after } => (pins, after))).await
    }

    /// Returns the file with a name, an id or a prefix of an id.
    pub async fn find(&self, query: &str) -> Result<FileRecord, TrackerError> {
        let request = Request::Find { query: query.to_owned() };
        self.call(&request, expect!(Reply::Find { file } => file)).await
    }

    /// Returns the current providers of a file. Leaves out endpoints that belong to this host or link, except loopback endpoints
    /// from a tracker on loopback.
    pub async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, TrackerError> {
        let request = Request::Providers { id: *id };
        let mut providers = self.call(&request, expect!(Reply::Providers { providers } => providers)).await?;
        let is_usable = |endpoint: &Endpoint| {
            endpoint.is_routable() || (endpoint.is_loopback() && self.endpoint.is_loopback())
        };
        for provider in &mut providers {
            provider.endpoints.retain(is_usable);
            provider.endpoints.truncate(MAX_ENDPOINTS);
        }
        Ok(providers)
    }

    /// Returns a page of the catalogue and the cursor of the next one.
    pub async fn list(
        &self,
        pattern: &str,
        cursor: Option<Vec<u8>>,
        limit: u32,
    ) -> Result<(Vec<FileRecord>, Option<Vec<u8>>), TrackerError> {
        let request = Request::List { pattern: pattern.to_owned(), cursor, limit };
        self.call(&request, expect!(Reply::List { files, cursor } => (files, cursor))).await
    }

    /// Returns the status of the tracker.
    pub async fn status(&self) -> Result<TrackerStatus, TrackerError> {
        self.call(&Request::Status, expect!(Reply::TrackerStatus(status) => status)).await
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
