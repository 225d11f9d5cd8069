//! Who may come in: the part of trackers.
//!
//! A tracker asks its database about whoever is behind a connection, once for each connection, and hears within moments of
//! those that any tracker of the catalogue throws out. It signs with the authority's key of the catalogue.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use crate::admission::admitted::{Admitted, Guest};
use crate::catalogue::Catalogue;
use crate::catalogue::error::CatalogueError;
use crate::clock::Clock;
use crate::model::id::PeerId;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{KnownSwarm, Reply};
use crate::swarm::authority::Authority;
use crate::swarm::invitation::Secret;
use crate::swarm::membership::{LIFE_MS, Rights, SignedMembership};
use crate::swarm::revocations::Revocations;
use crate::transport::PeerInfo;

/// How often invitations and revocations that are over are taken away.
const SWEEP: Duration = Duration::from_secs(600);
/// A membership is renewed when less than this is left of it, in milliseconds.
const RENEWED_MS: u64 = LIFE_MS / 2;
/// So many joins may fail at once from one address, and one more in each of these milliseconds.
const FAILED_JOINS: u64 = 10;
const FAILED_JOIN_MS: u64 = 10_000;

/// Who was thrown out, also as peers are told of it.
#[derive(Debug, Default)]
struct Listed {
    revocations: Revocations,
    signed: Bytes,
}

/// Decides who may come in at a tracker.
#[derive(Debug)]
pub struct Admission {
    catalogue: Arc<Catalogue>,
    authority: Authority,
    me: PeerId,
    clock: Arc<dyn Clock>,
    admitted: Mutex<Admitted>,
    listed: RwLock<Listed>,
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
            authority,
            me,
            clock,
            admitted: Mutex::default(),
            listed: RwLock::default(),
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
        let known = self.listed.read().revocations.version();
        if self.catalogue.revocations_version().await? == known {
            return Ok(());
        }
        let revocations = self.catalogue.revocations(self.clock.now_ms()).await?;
        let signed = self.authority.sign_revocations(&revocations);
        {
            let mut listed = self.listed.write();
            if revocations.version() > listed.revocations.version() {
                *listed = Listed { revocations, signed };
            }
        }
        // In this order everywhere.
        let mut admitted = self.admitted.lock();
        let listed = self.listed.read();
        admitted.throw_out(|peer| listed.revocations.contains(peer));
        Ok(())
    }

    /// Who is behind a connection, if that was asked before.
    pub fn guest(&self, peer: &PeerInfo) -> Option<Guest> {
        self.admitted.lock().get(peer.connection, self.clock.now_ms())
    }

    /// Who is behind a connection, by what the database says of it.
    ///
    /// # Errors
    /// `unauthorized` for who is no member.
    pub async fn admit(&self, peer: &PeerInfo) -> Result<Guest, ErrorReply> {
        let id = identity(peer)?;
        let rights = self.rights(&id).await?;
        self.remember(peer, id, rights)
    }

    fn remember(&self, peer: &PeerInfo, id: PeerId, rights: Rights) -> Result<Guest, ErrorReply> {
        let until = self.clock.now_ms().saturating_add(LIFE_MS);
        // Who is thrown out at this moment is either on the list here, or found when the list comes.
        let mut admitted = self.admitted.lock();
        if self.listed.read().revocations.contains(&id) {
            return Err(CatalogueError::Revoked.into());
        }
        Ok(admitted.admit(peer.connection, id, rights, until))
    }

    async fn rights(&self, peer: &PeerId) -> Result<Rights, ErrorReply> {
        if *peer == self.me {
            return Ok(Rights::Full);
        }
        match self.catalogue.member(peer).await? {
            Some(member) if member.revoked.is_some() => Err(CatalogueError::Revoked.into()),
            Some(member) => Ok(member.rights),
            None => {
                let message = format!("{peer} is no member of this swarm; it comes in with an invitation");
                Err(ErrorReply::new(ErrorCode::Unauthorized, message))
            }
        }
    }

    /// Lets a peer in that has the secret of an invitation.
    pub async fn join(&self, secret: &Secret, peer: &PeerInfo) -> Result<Reply, ErrorReply> {
        let id = identity(peer)?;
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
        self.remember(peer, id, member.rights)?;
        tracing::info!(peer = %id, rights = %member.rights, "a peer came in by invitation");
        Ok(Reply::Joined { membership: self.authority.admit(id, member.rights, now) })
    }

    /// A membership for somebody who is in, by what the database says now.
    pub async fn membership(&self, peer: &PeerId) -> Result<SignedMembership, ErrorReply> {
        let rights = self.rights(peer).await?;
        Ok(self.authority.admit(*peer, rights, self.clock.now_ms()))
    }

    /// What is news to a peer that knows this much.
    pub async fn news(&self, peer: &PeerId, known: KnownSwarm) -> Result<Reply, ErrorReply> {
        let soon = self.clock.now_ms().saturating_add(RENEWED_MS);
        let membership = if known.until < soon { Some(self.membership(peer).await?) } else { None };
        let listed = self.listed.read();
        let newer = listed.revocations.version() > known.revocations;
        Ok(Reply::Renewed { membership, revocations: newer.then(|| listed.signed.clone()) })
    }
}

fn identity(peer: &PeerInfo) -> Result<PeerId, ErrorReply> {
    peer.identity.ok_or_else(|| {
        let message = "this swarm is by invitation: come over a connection that is authenticated";
        ErrorReply::new(ErrorCode::Unauthorized, message)
    })
}
