//! Admission of peers to an invite-only swarm, on the side of trackers.
//!
//! A tracker looks a peer up in the database once per connection, and polls the database for revocations by any tracker of
//! the catalogue. It signs memberships and revocations with the authority of the catalogue.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::ticker::ticker;
use crate::catalogue::Catalogue;
use crate::catalogue::access::TURN_TIMEOUT;
use crate::catalogue::error::CatalogueError;
use crate::membership::admitted::{AdmittedPeer, AdmittedPeers};
use crate::membership::credentials::authority::Authority;
use crate::membership::credentials::revocations::Revocations;
use crate::membership::per_connection::PerConnection;
use crate::membership::refusal::Refusal;
use crate::membership::verifier::Verifier;
use crate::rate_limit::gcra::RateLimit;
use crate::rate_limit::per_address::AddressRateLimit;
use crate::rate_limit::turns::Turns;
use enjambre_core::model::membership::{LIFE, Rights, SKEW, SignedMembership};
use enjambre_core::model::network::network_of;
use enjambre_core::model::secret::Secret;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{MembershipState, Reply};
use enjambre_core::runtime::clock::Clock;
use enjambre_core::{PeerId, PeerInfo, UnixMillis};

/// The time between two sweeps for expired invitations and revocations.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// The remaining validity below which a membership is renewed.
const RENEW_BELOW: Duration = Duration::from_secs(LIFE.as_secs() / 2);
/// The time that a refusal is cached.
const REFUSAL_TTL: Duration = Duration::from_secs(1);
/// The limit of failed join attempts per address: a burst, and the time until one more is allowed.
const FAILED_JOINS: RateLimit = RateLimit { burst: 10, interval: Duration::from_secs(10) };
/// The number of concurrent joins, each of which is a durable commit.
const JOINS: usize = 2;
/// The number of these for one address.
const JOINS_PER_ADDRESS: usize = JOINS / 2;

/// The revocation list, and its signed pages.
#[derive(Debug, Default)]
struct RevocationList {
    revocations: Revocations,
    /// The pages, each with the version up to which it is complete.
    pages: Vec<(u64, Bytes)>,
}

/// Decides which peers a tracker admits.
#[derive(Debug)]
pub struct Admission {
    catalogue: Arc<Catalogue>,
    authority: Authority,
    verifier: Verifier,
    me: PeerId,
    clock: Arc<dyn Clock>,
    admitted: AdmittedPeers,
    /// The time and reason of the last refusal on each connection.
    refused: Mutex<PerConnection<(UnixMillis, Refusal)>>,
    list: RwLock<RevocationList>,
    /// The version of an outdated list in the database that was logged.
    outdated_version: AtomicU64,
    failed_joins: AddressRateLimit,
    joins: Turns<IpAddr>,
}

impl Admission {
    /// Opens the admission of the tracker `me`. The first tracker of a catalogue creates the authority.
    pub async fn open(
        catalogue: Arc<Catalogue>,
        me: PeerId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CatalogueError> {
        let authority = catalogue.authority().await?;
        let admission = Self {
            catalogue,
            verifier: Verifier::new(*authority.key()),
            authority,
            me,
            clock,
            admitted: AdmittedPeers::default(),
            refused: Mutex::default(),
            list: RwLock::default(),
            outdated_version: AtomicU64::new(u64::MAX),
            failed_joins: AddressRateLimit::new(FAILED_JOINS),
            joins: Turns::new(JOINS, JOINS_PER_ADDRESS),
        };
        admission.refresh().await?;
        Ok(admission)
    }

    /// The authority of the swarm.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Signs a membership for the tracker itself, which stores replicas like a peer.
    pub fn own_membership(&self) -> SignedMembership {
        self.authority.admit(self.me, Rights::Full, self.clock.now())
    }

    /// Polls for revocations at this interval and sweeps expired entries, until the shutdown.
    pub async fn run(&self, refresh_interval: Duration, shutdown: CancellationToken) {
        let refresh = async {
            let mut ticks = ticker(refresh_interval);
            loop {
                ticks.tick().await;
                if let Err(error) = self.refresh().await {
                    tracing::warn!(%error, "revocation list refresh failed");
                }
            }
        };
        let sweep = async {
            let mut ticks = ticker(SWEEP_INTERVAL);
            loop {
                ticks.tick().await;
                let now = self.clock.now();
                let swept = async {
                    self.catalogue.sweep_invitations(now).await?;
                    self.catalogue.sweep_revocations(now).await
                };
                if let Err(error) = swept.await {
                    tracing::warn!(%error, "invitation sweep failed");
                }
            }
        };
        tokio::join!(shutdown.run_until_cancelled(refresh), shutdown.run_until_cancelled(sweep));
    }

    /// Reads new revocations by any tracker of the catalogue and closes the connections of the revoked peers.
    pub async fn refresh(&self) -> Result<(), CatalogueError> {
        let (known, signed) = {
            let list = self.list.read();
            (list.revocations.version(), list.pages.clone())
        };
        let stored = self.catalogue.revocations_version().await?;
        if stored <= known {
            if stored < known && self.outdated_version.swap(stored, Ordering::Relaxed) != stored {
                tracing::warn!(
                    stored,
                    known,
                    "revocation list in the database is outdated, as after a restore from a backup; this tracker enforces its \
                     own list until it stops; revoke the missing peers again"
                );
            }
            return Ok(());
        }
        let now = self.clock.now();
        let mut revocations = self.catalogue.revocations(now).await?;
        // A restored database lacks the revocations since its backup.
        revocations.merge(&self.list.read().revocations, now);
        let mut pages = Vec::new();
        for page in revocations.pages(now) {
            let same =
                signed.iter().find(|(version, signed)| *version == page.version() && page.matches(signed));
            pages.push(match same {
                Some(same) => same.clone(),
                None => (page.version(), page.sign(&self.authority)),
            });
            // Signing many pages takes time.
            tokio::task::yield_now().await;
        }
        {
            let mut list = self.list.write();
            if revocations.version() > list.revocations.version() {
                *list = RevocationList { revocations, pages };
            }
        }
        let closed = self.admitted.revoke(|peer| self.is_revoked(peer));
        tracing::info!(revoked = self.list.read().revocations.len(), closed, "revocation list updated");
        Ok(())
    }

    fn is_revoked(&self, peer: &PeerId) -> bool {
        self.list.read().revocations.contains(peer)
    }

    /// Returns the peer that was admitted on a connection.
    pub fn admitted(&self, peer: &PeerInfo) -> Option<Arc<AdmittedPeer>> {
        self.admitted.get(peer.connection, self.clock.now())
    }

    /// Looks the peer of a connection up in the database and admits it.
    ///
    /// # Errors
    /// `unauthorized` if it is not a member.
    pub async fn admit(&self, peer: &PeerInfo) -> Result<Arc<AdmittedPeer>, ErrorReply> {
        let id = peer.identity.ok_or(Refusal::NoIdentity)?;
        let rights = self.cached_rights(peer, &id).await??;
        self.admit_for(peer, id, rights, self.clock.now() + LIFE)
    }

    /// Admits a peer that presents a membership, and replies with the membership of this tracker. Only the other trackers of the
    /// swarm need this: they store replicas like peers but are not in the database.
    ///
    /// # Errors
    /// `unauthorized` if it is not a member.
    pub async fn authorize(&self, peer: &PeerInfo, signed: &SignedMembership) -> Result<Reply, ErrorReply> {
        let id = peer.identity.ok_or(Refusal::NoIdentity)?;
        if self.admitted(peer).is_none() {
            // The database has precedence, because it contains all revocations, however old.
            match self.cached_rights(peer, &id).await? {
                Ok(rights) => self.admit_for(peer, id, rights, self.clock.now() + LIFE)?,
                Err(Refusal::NotAMember(_)) => {
                    let now = self.clock.now();
                    let membership = self.verifier.verify_limited(peer, signed, id, now)?;
                    self.admit_for(peer, id, membership.rights, membership.until + SKEW)?
                }
                Err(refusal) => return Err(refusal.into()),
            };
        }
        Ok(Reply::Authorized { membership: Some(self.own_membership()) })
    }

    fn admit_for(
        &self,
        peer: &PeerInfo,
        id: PeerId,
        rights: Rights,
        until: UnixMillis,
    ) -> Result<Arc<AdmittedPeer>, ErrorReply> {
        Ok(self.admitted.admit(peer, id, rights, until, |id| self.is_revoked(id))?)
    }

    /// As [`Admission::rights`], with a cache of refusals, so that a refused peer cannot keep the database busy.
    async fn cached_rights(
        &self,
        peer: &PeerInfo,
        id: &PeerId,
    ) -> Result<Result<Rights, Refusal>, CatalogueError> {
        let now = self.clock.now();
        let refused = self.refused.lock().get(peer.connection).copied();
        if let Some((at, refusal)) = refused
            && now.checked_since(at).is_some_and(|age| age < REFUSAL_TTL)
        {
            return Ok(Err(refusal));
        }
        let rights = self.rights(id).await?;
        if let Err(refusal) = rights {
            self.refused.lock().insert(peer, (now, refusal));
        }
        Ok(rights)
    }

    /// Returns the rights of a peer, or the reason why it has none.
    async fn rights(&self, peer: &PeerId) -> Result<Result<Rights, Refusal>, CatalogueError> {
        if *peer == self.me {
            return Ok(Ok(Rights::Full));
        }
        Ok(match self.catalogue.member(peer).await? {
            Some(member) if member.revoked.is_some() => Err(Refusal::Revoked),
            Some(member) => Ok(member.rights),
            None => Err(Refusal::NotAMember(*peer)),
        })
    }

    /// Makes a peer that has the secret of an invitation a member.
    ///
    /// Failed attempts are limited by address, so that a peer that fails backs off and does not fill the log. The limit must
    /// not exclude peers behind the same address that have a valid invitation, so the secret is looked up first. That does not
    /// help to guess it: it has 128 random bits. Joins take turns, so that they delay no lookups,
    /// and not with searches, which are for members.
    pub async fn join(&self, secret: &Secret, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let id = peer.identity.ok_or(Refusal::NoIdentity)?;
        let now = self.clock.now();
        let take_failure = || {
            self.failed_joins.take(peer.address, now).map_err(|wait| {
                ErrorReply::new(ErrorCode::Busy, "too many failed join attempts from this address")
                    .retry_after(wait)
            })
        };
        let joined = self.catalogue.join(id, secret.hash(), now);
        let joined = self.joins.run(peer.address.map(network_of), TURN_TIMEOUT, joined).await;
        let member = match joined.unwrap_or(Err(CatalogueError::Busy)) {
            Ok(member) => member,
            Err(error) => {
                if matches!(error, CatalogueError::NoInvitation | CatalogueError::Revoked) {
                    take_failure()?;
                    tracing::info!(peer = %id, address = peer.address.map(tracing::field::display), %error, "join refused");
                }
                return Err(error.into());
            }
        };
        if !member.invitations.contains(&secret.hash()) {
            // A member that tries another secret may be guessing.
            take_failure()?;
        }
        self.admit_for(peer, id, member.rights, now + LIFE)?;
        // The other connections of the peer are no longer refused either.
        self.refused.lock().retain(|_, (_, refusal)| *refusal != Refusal::NotAMember(id));
        tracing::info!(peer = %id, rights = %member.rights, "peer joined");
        Ok(Reply::Joined { membership: self.authority.admit(id, member.rights, now) })
    }

    /// Signs a membership for a member, with its current rights in the database.
    pub async fn membership(&self, peer: &PeerId) -> Result<SignedMembership, ErrorReply> {
        let rights = self.rights(peer).await??;
        Ok(self.authority.admit(*peer, rights, self.clock.now()))
    }

    /// Returns the changes since the membership state `known` of a peer: a membership if the current one expires soon, the
    /// next revocation page, and whether there are more of them.
    pub async fn renew(
        &self,
        peer: &PeerId,
        known: MembershipState,
    ) -> Result<(Option<SignedMembership>, Option<Bytes>, bool), ErrorReply> {
        let soon = self.clock.now() + RENEW_BELOW;
        let membership = if known.expires_ms < soon { Some(self.membership(peer).await?) } else { None };
        let list = self.list.read();
        let mut newer = list.pages.iter().filter(|(version, _)| *version > known.revocations);
        let revocations = newer.next().map(|(_, page)| page.clone());
        Ok((membership, revocations, newer.next().is_some()))
    }
}
