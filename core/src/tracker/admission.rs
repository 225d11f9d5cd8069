//! Who may come in: the part of trackers.
//!
//! A tracker asks its database about whoever is behind a connection, once for each connection, and hears within moments of
//! those that any tracker of the catalogue throws out. It signs with the authority's key of the catalogue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use crate::admission::admitted::{Admitted, Guest};
use crate::admission::by_connection::ByConnection;
use crate::admission::checks::Checks;
use crate::admission::refusal::Refusal;
use crate::catalogue::Catalogue;
use crate::catalogue::error::CatalogueError;
use crate::clock::Clock;
use crate::model::id::PeerId;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{KnownSwarm, Reply};
use crate::swarm::authority::Authority;
use crate::swarm::invitation::Secret;
use crate::swarm::membership::{LIFE_MS, Rights, SKEW_MS, SignedMembership};
use crate::swarm::revocations::Revocations;
use crate::transport::PeerInfo;

/// How often invitations and revocations that are over are taken away.
const SWEEP: Duration = Duration::from_secs(600);
/// A membership is renewed when less than this is left of it, in milliseconds.
const RENEWED_MS: u64 = LIFE_MS / 2;
/// For how long whoever was refused is refused again without a look at the database, in milliseconds.
const REFUSED_MS: u64 = 1000;
/// So many joins may fail at once from one address, and one more in each of these milliseconds.
const FAILED_JOINS: u64 = 10;
const FAILED_JOIN_MS: u64 = 10_000;

/// Who was thrown out, also as peers are told of it.
#[derive(Debug, Default)]
struct Listed {
    revocations: Revocations,
    /// Each with the version that it ends with.
    pages: Vec<(u64, Bytes)>,
}

/// Decides who may come in at a tracker.
#[derive(Debug)]
pub struct Admission {
    catalogue: Arc<Catalogue>,
    authority: Authority,
    checks: Checks,
    me: PeerId,
    clock: Arc<dyn Clock>,
    admitted: Mutex<Admitted>,
    /// Who was not let in over which connection, and when.
    refused: Mutex<ByConnection<(u64, Refusal)>>,
    listed: RwLock<Listed>,
    /// The version of an older list that was found in the database, of which was told already.
    set_back: AtomicU64,
    failed: Pace,
}

impl Admission {
    /// For the tracker `me` on this catalogue. The first one makes the authority.
    pub async fn open(
        catalogue: Arc<Catalogue>,
        me: PeerId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CatalogueError> {
        let authority = catalogue.authority().await?;
        let admission = Self {
            catalogue,
            checks: Checks::new(*authority.key()),
            authority,
            me,
            clock,
            admitted: Mutex::default(),
            refused: Mutex::default(),
            listed: RwLock::default(),
            set_back: AtomicU64::new(u64::MAX),
            failed: Pace::new(FAILED_JOIN_MS, FAILED_JOINS),
        };
        admission.refresh().await?;
        Ok(admission)
    }

    /// The authority of the swarm.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A membership of the tracker itself, which keeps copies like a peer.
    pub fn own_membership(&self) -> SignedMembership {
        self.authority.admit(self.me, Rights::Full, self.clock.now_ms())
    }

    /// Looks for new revocations in these intervals, and takes away what is over, until the shutdown.
    pub async fn run(&self, every: Duration, shutdown: CancellationToken) {
        let watch = async {
            let mut ticks = interval(every.max(Duration::from_millis(10)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Err(error) = self.refresh().await {
                    tracing::warn!(%error, "could not find out who was thrown out of the swarm");
                }
            }
        };
        let sweep = async {
            let mut ticks = interval(SWEEP);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let now = self.clock.now_ms();
                let swept = async {
                    self.catalogue.sweep_invitations(now).await?;
                    self.catalogue.sweep_revocations(now).await
                };
                if let Err(error) = swept.await {
                    tracing::warn!(%error, "could not look after the invitations");
                }
            }
        };
        tokio::join!(shutdown.run_until_cancelled(watch), shutdown.run_until_cancelled(sweep));
    }

    /// Looks whether somebody was thrown out, by whichever tracker, and closes what is open for them.
    pub async fn refresh(&self) -> Result<(), CatalogueError> {
        let (known, signed) = {
            let listed = self.listed.read();
            (listed.revocations.version(), listed.pages.clone())
        };
        let stored = self.catalogue.revocations_version().await?;
        if stored <= known {
            if stored < known && self.set_back.swap(stored, Ordering::Relaxed) != stored {
                tracing::warn!(
                    "the list of revocations in the database is older than the one that this tracker knows: was an old copy \
                     of the database put back? Who was thrown out since that copy is kept out until this tracker stops; throw \
                     them out anew"
                );
            }
            return Ok(());
        }
        let now = self.clock.now_ms();
        let mut revocations = self.catalogue.revocations(now).await?;
        // An old copy of the database does not know of all.
        revocations.keep(&self.listed.read().revocations, now);
        let mut pages = Vec::new();
        for page in revocations.pages(now) {
            let same =
                signed.iter().find(|(version, signed)| *version == page.version() && page.is_in(signed));
            pages.push(match same {
                Some(same) => same.clone(),
                None => (page.version(), self.authority.sign_revocations(&page)),
            });
            // Many take some time.
            tokio::task::yield_now().await;
        }
        {
            let mut listed = self.listed.write();
            if revocations.version() > listed.revocations.version() {
                *listed = Listed { revocations, pages };
            }
        }
        // In this order everywhere.
        let mut admitted = self.admitted.lock();
        let listed = self.listed.read();
        let closed = admitted.throw_out(|peer| listed.revocations.contains(peer));
        tracing::info!(
            revoked = listed.revocations.len(),
            closed,
            "who was thrown out of the swarm has changed"
        );
        Ok(())
    }

    /// Who is behind a connection, if that was asked before.
    pub fn guest(&self, peer: &PeerInfo) -> Option<Arc<Guest>> {
        self.admitted.lock().get(peer.connection, self.clock.now_ms())
    }

    /// Who is behind a connection, by what the database says of it.
    ///
    /// # Errors
    /// `unauthorized` for who is no member.
    pub async fn admit(&self, peer: &PeerInfo) -> Result<Arc<Guest>, ErrorReply> {
        let id = peer.identity.ok_or(Refusal::NoIdentity)?;
        let rights = self.rights_over(peer, &id).await??;
        self.remember(peer, id, rights, LIFE_MS)
    }

    /// Lets in who introduces itself. Peers need not; but the other trackers of the swarm, which keep copies like peers, are known
    /// by nothing else than that the authority signed their memberships. The answer has this tracker's own.
    ///
    /// # Errors
    /// `unauthorized` for who is no member.
    pub async fn introduce(&self, peer: &PeerInfo, shown: &SignedMembership) -> Result<Reply, ErrorReply> {
        let id = peer.identity.ok_or(Refusal::NoIdentity)?;
        if self.guest(peer).is_none() {
            // What the database says comes first: it knows who was thrown out, however long ago.
            match self.rights_over(peer, &id).await? {
                Ok(rights) => self.remember(peer, id, rights, LIFE_MS)?,
                Err(Refusal::Stranger(_)) => {
                    let now = self.clock.now_ms();
                    let membership = self.checks.check_over(peer, shown, id, now)?;
                    let left = membership.until.saturating_add(SKEW_MS).saturating_sub(now);
                    self.remember(peer, id, membership.rights, left)?
                }
                Err(refusal) => return Err(refusal.into()),
            };
        }
        Ok(Reply::Introduced { membership: Some(self.own_membership()) })
    }

    fn remember(
        &self,
        peer: &PeerInfo,
        id: PeerId,
        rights: Rights,
        millis: u64,
    ) -> Result<Arc<Guest>, ErrorReply> {
        let until = self.clock.now_ms().saturating_add(millis);
        // Who is thrown out at this moment is either on the list here, or found when the list comes.
        let mut admitted = self.admitted.lock();
        if self.listed.read().revocations.contains(&id) {
            return Err(Refusal::ThrownOut.into());
        }
        Ok(admitted.admit(peer, id, rights, until))
    }

    /// The same as [`Admission::rights`], but for who was refused over this connection a moment ago: it still is.
    async fn rights_over(
        &self,
        peer: &PeerInfo,
        id: &PeerId,
    ) -> Result<Result<Rights, Refusal>, CatalogueError> {
        let now = self.clock.now_ms();
        let refused = self.refused.lock().get(peer.connection).copied();
        if let Some((at, refusal)) = refused
            && now.checked_sub(at).is_some_and(|age| age < REFUSED_MS)
        {
            return Ok(Err(refusal));
        }
        let rights = self.rights(id).await?;
        if let Err(refusal) = rights {
            self.refused.lock().insert(peer, (now, refusal));
        }
        Ok(rights)
    }

    /// What a peer may do, or why it may nothing.
    async fn rights(&self, peer: &PeerId) -> Result<Result<Rights, Refusal>, CatalogueError> {
        if *peer == self.me {
            return Ok(Ok(Rights::Full));
        }
        Ok(match self.catalogue.member(peer).await? {
            Some(member) if member.revoked.is_some() => Err(Refusal::ThrownOut),
            Some(member) => Ok(member.rights),
            None => Err(Refusal::Stranger(*peer)),
        })
    }

    /// Lets a peer in that has the secret of an invitation.
    pub async fn join(&self, secret: &Secret, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let id = peer.identity.ok_or(Refusal::NoIdentity)?;
        let now = self.clock.now_ms();
        let busy = |wait| {
            let busy =
                ErrorReply::new(ErrorCode::Busy, "too many invitations from this address were not good");
            busy.retry_after(Duration::from_millis(wait))
        };
        self.failed.look(peer.address, now).map_err(busy)?;
        let member = match self.catalogue.join(id, secret.hash(), now).await {
            Ok(member) => member,
            Err(error) => {
                if matches!(error, CatalogueError::NoInvitation | CatalogueError::Revoked) {
                    self.failed.take(peer.address, now).map_err(busy)?;
                    tracing::info!(peer = %id, address = ?peer.address, %error, "somebody was not let in");
                }
                return Err(error.into());
            }
        };
        if !member.invitations.contains(&secret.hash()) {
            // It was in already, and asks for what does not get it any further.
            self.failed.take(peer.address, now).map_err(busy)?;
        }
        self.remember(peer, id, member.rights, LIFE_MS)?;
        // Also over the other connections that it has.
        self.refused.lock().retain(|_, (_, refusal)| *refusal != Refusal::Stranger(id));
        tracing::info!(peer = %id, rights = %member.rights, "a peer came in by invitation");
        Ok(Reply::Joined { membership: self.authority.admit(id, member.rights, now) })
    }

    /// A membership for somebody who is in, by what the database says now.
    pub async fn membership(&self, peer: &PeerId) -> Result<SignedMembership, ErrorReply> {
        let rights = self.rights(peer).await??;
        Ok(self.authority.admit(*peer, rights, self.clock.now_ms()))
    }

    /// What is news to a peer that knows this much.
    pub async fn news(&self, peer: &PeerId, known: KnownSwarm) -> Result<Reply, ErrorReply> {
        let soon = self.clock.now_ms().saturating_add(RENEWED_MS);
        let membership = if known.until < soon { Some(self.membership(peer).await?) } else { None };
        let listed = self.listed.read();
        let mut newer = listed.pages.iter().filter(|(version, _)| *version > known.revocations);
        let revocations = newer.next().map(|(_, page)| page.clone());
        Ok(Reply::Renewed { membership, revocations, more: newer.next().is_some() })
    }
}
