//! The administration of a tracker: invitations, members, revocations and reserved names.
//!
//! In a running tracker, the control socket provides access. If the tracker is stopped, [`StandaloneAdmin`] works on its
//! database.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use enjambre_control::{
    Command, Event, Events, Execute, Failure, Input, InvitationLine, MemberLine, NewInvitation, Reserved,
    ResultContext, Revoked,
};
use enjambre_core::model::membership::Rights;
use enjambre_core::model::secret::{Secret, SecretHash};
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{Endpoint, Name, PeerId, Role, Storage};
use enjambre_swarm::catalogue::layout::InvitationRecord;
use enjambre_swarm::catalogue::{self, Catalogue};
use enjambre_swarm::membership::credentials::invitation::{Invitation, MAX_TRACKERS};
use enjambre_swarm::tracker::admission::Admission;
use enjambre_swarm::tracker::pin_store::PinStore;
use enjambre_swarm::tracker::settings::TrackerSettings;

use super::endpoints_file;
use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::data_dir::{DataDir, never_started};
use crate::known_database;
use crate::node_key;
use crate::registry::Registry;
use crate::registry::locations::node_place;

/// Minimum number of digits in a prefix of an id.
const MIN_PREFIX: usize = 4;

#[derive(Debug)]
pub(crate) struct AdminService {
    pub(super) catalogue: Arc<Catalogue>,
    /// The replica store of a running tracker.
    pub(super) store: Option<Arc<dyn PinStore>>,
    /// `None` if the swarm is open.
    admission: Option<Arc<Admission>>,
    /// The endpoints at which peers reach this tracker.
    endpoints: Vec<Endpoint>,
}

/// The admin service of a tracker that is stopped.
#[derive(Debug)]
pub(crate) struct StandaloneAdmin {
    pub(crate) service: AdminService,
    storage: Arc<dyn Storage>,
    _data_dir: DataDir,
}

impl StandaloneAdmin {
    /// Opens the database of a tracker whose data directory is locked by this process. Fails if the tracker was never
    /// started: a mistake in the configuration must not create another tracker with another authority.
    pub(crate) async fn open(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: DataDir,
    ) -> Result<Self, Failure> {
        let folder = data_dir.path().to_owned();
        let key = node_key::load(&folder).await?.ok_or_else(|| never_started(&folder))?;
        let listen = endpoints_file::effective(&loaded.config.transport.listen, &folder).await;
        let place = node_place(NodeKind::Tracker, &folder);
        let storage = registry.open_storage(loaded, place, Role::Records).await?;
        match open_catalogue(registry, loaded, &folder, false, &storage, key.peer_id()).await {
            Ok((catalogue, admission, _)) => {
                let service =
                    AdminService::new(registry, loaded, catalogue, admission, &listen, key.peer_id(), None);
                Ok(Self { service, storage, _data_dir: data_dir })
            }
            Err(failure) => {
                // The first failure is reported, because nothing was written.
                let _ = storage.close().await;
                Err(failure)
            }
        }
    }

    pub(crate) async fn close(self) -> Result<(), Failure> {
        Ok(self.storage.close().await?)
    }
}

impl AdminService {
    /// Creates the service of a tracker with this id that listens on these endpoints.
    pub(crate) fn new(
        registry: &Registry,
        loaded: &Loaded,
        catalogue: Arc<Catalogue>,
        admission: Option<Arc<Admission>>,
        listen: &[Endpoint],
        tracker: PeerId,
        store: Option<Arc<dyn PinStore>>,
    ) -> Self {
        let advertise = &loaded.config.transport.advertise;
        let announced = if advertise.is_empty() { listen } else { advertise };
        let with_id =
            |endpoint: &Endpoint| endpoint.with_id(registry.is_authenticated(endpoint).then_some(tracker));
        let is_reachable = |endpoint: &Endpoint| {
            endpoint.id().is_some() && endpoint.port() != 0 && !endpoint.is_unspecified()
        };
        let endpoints = announced.iter().map(with_id).filter(is_reachable).collect();
        Self { catalogue, store, admission, endpoints }
    }

    pub(super) fn is_invite_only(&self) -> bool {
        self.admission.is_some()
    }

    fn admission(&self) -> Result<&Admission, Failure> {
        self.admission.as_deref().ok_or_else(|| {
            let text = "the swarm is open and has no members or invitations; set swarm.admission = \"invite\" on its \
                        trackers";
            Failure { code: Some(ErrorCode::Unsupported), ..Failure::usage(text) }
        })
    }

    async fn invite(
        &self,
        (uses, lifetime_ms): (u32, u64),
        rights: Rights,
        others: Vec<Endpoint>,
        events: &Events,
    ) -> Result<(), Failure> {
        let admission = self.admission()?;
        if uses == 0 || lifetime_ms == 0 {
            return Err(Failure::usage("an invitation requires at least one use and a validity period"));
        }
        let mut trackers = self.endpoints.clone();
        if let Some(other) = others.iter().find(|other| other.id().is_none()) {
            return Err(Failure::usage(format!(
                "tracker endpoint {other} does not contain an id; write SCHEME://ID@HOST:PORT"
            )));
        }
        trackers.extend(others);
        trackers.dedup();
        if trackers.is_empty() {
            return Err(Failure::usage(
                "the invitation would contain no tracker endpoint, because this tracker listens on all addresses; set \
                 transport.advertise to an endpoint that peers can reach",
            ));
        }
        if trackers.len() > MAX_TRACKERS {
            return Err(Failure::usage(format!(
                "too many tracker endpoints; an invitation contains at most {MAX_TRACKERS}"
            )));
        }
        if trackers.iter().all(Endpoint::is_loopback) {
            let text = "this invitation works on this machine only; set transport.advertise to an endpoint that other \
                        machines can reach";
            events.warn(text).await;
        }
        let now = SystemClock.now();
        let (secret, until) = (Secret::generate(), now + Duration::from_millis(lifetime_ms));
        self.catalogue.invite(secret.hash(), rights, uses, until, now).await?;
        let authority = *admission.authority().key();
        let id = secret.hash().to_string();
        let invitation = Invitation { authority, secret, until, trackers }.to_string();
        events.send(Event::Invitation(NewInvitation { invitation, id, uses, expires_ms: until })).await;
        Ok(())
    }

    async fn invitations(&self, events: &Events) -> Result<(), Failure> {
        self.admission()?;
        let now = SystemClock.now();
        let mut after = None;
        loop {
            let page = self.catalogue.invitations(after.as_ref(), now).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.0);
            for invitation in page.iter().filter(|(_, record)| now < record.until) {
                events.send(Event::OpenInvitation(line(invitation))).await;
            }
        }
    }

    async fn cancel_invitation(&self, prefix: &str, events: &Events) -> Result<(), Failure> {
        self.admission()?;
        let prefix = parse_prefix("invitation", prefix)?;
        let found = self.catalogue.invitations_with_prefix(&prefix).await?;
        let id = single("invitation", &prefix, &found)?;
        if !self.catalogue.cancel_invitation(id).await? {
            return Err(Failure::not_found(format!("invitation {prefix} no longer exists")));
        }
        events.send(Event::Cancelled { id: id.to_string() }).await;
        Ok(())
    }

    async fn peers(&self, events: &Events) -> Result<(), Failure> {
        self.admission()?;
        let mut after = None;
        loop {
            let page = self.catalogue.members(after.as_ref(), SystemClock.now()).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.peer);
            for member in page {
                let line = MemberLine {
                    peer: member.peer,
                    rights: member.record.rights,
                    joined_ms: member.record.joined,
                    last_seen_ms: member.seen,
                    online: member.alive,
                    revoked_ms: member.record.revoked,
                    invitations: member.record.invitations.iter().map(SecretHash::to_string).collect(),
                };
                events.send(Event::Member(line)).await;
            }
        }
    }

    async fn revoke(&self, peer: &str, events: &Events) -> Result<(), Failure> {
        let admission = self.admission()?;
        let peer = self.peer(peer).await?;
        let revoked = self.catalogue.revoke(&peer, SystemClock.now()).await?;
        if let Err(error) = admission.refresh().await {
            let text = format!(
                "{peer} is revoked, but its open connections are closed with a delay: {}",
                Failure::from(error)
            );
            events.warn(text).await;
        }
        if revoked.ahead {
            let text = "the revocation list is dated more than a day ahead of the clock of this machine, and peers reject \
                        such a list; trackers refuse the revoked peer now, but peers only after its membership expires, \
                        within a day. Correct the clock; if it is right, see docs/SECURITY.md";
            events.warn(text).await;
        }
        let cancelled = revoked.cancelled.iter().map(line).collect();
        events.send(Event::Revoked(Revoked { peer, new: revoked.new, cancelled })).await;
        Ok(())
    }

    async fn reserve(&self, name: Name, peer: Option<String>, events: &Events) -> Result<(), Failure> {
        let (peer, replaced) = match peer {
            Some(peer) => {
                let peer = self.peer(&peer).await?;
                (Some(peer), self.catalogue.reserve(&name, peer, SystemClock.now()).await?)
            }
            None if self.catalogue.release(&name).await? => (None, None),
            None => return Err(Failure::not_found(format!("name {name} is not reserved"))),
        };
        events.send(Event::Reserved(Reserved { name, peer, replaced })).await;
        Ok(())
    }

    /// Returns the peer with this id or with an id that has this prefix.
    async fn peer(&self, id: &str) -> Result<PeerId, Failure> {
        if let Ok(peer) = id.parse() {
            return Ok(peer);
        }
        let prefix = parse_prefix("peer", id)?;
        let found = self.catalogue.peers_with_prefix(&prefix).await?;
        single("peer", &prefix, &found)
    }
}

fn line((id, record): &(SecretHash, InvitationRecord)) -> InvitationLine {
    let InvitationRecord { rights, uses, until, at, .. } = *record;
    InvitationLine { id: id.to_string(), rights, uses, expires_ms: until, created_ms: at }
}

/// Opens the catalogue of a tracker, and the admission if the swarm is invite-only.
pub(super) async fn open_catalogue(
    registry: &Registry,
    loaded: &Loaded,
    data_dir: &Path,
    init: bool,
    storage: &Arc<dyn Storage>,
    tracker: PeerId,
) -> Result<(Arc<Catalogue>, Option<Arc<Admission>>, TrackerSettings), Failure> {
    let section = &loaded.config.tracker;
    let settings = TrackerSettings {
        lease: section.lease.get(),
        file_retention: section.retention.get(),
        sessions_per_address: section.sessions_per_address,
        lookup_cache: section.lookup_cache.as_usize(),
        ..TrackerSettings::default()
    };
    let format = catalogue::stored_format(&**storage).await.context("cannot open the catalogue")?;
    known_database::check(data_dir, format, &loaded.config.storage.backend, init).await?;
    let catalogue = Catalogue::open(Arc::clone(storage), settings.rules(), SystemClock.now()).await;
    let catalogue = Arc::new(catalogue.context("cannot open the catalogue")?);
    if !registry.is_volatile(loaded) {
        known_database::record(data_dir, &**storage, &loaded.config.storage.backend).await?;
    }
    let action = "cannot read the authority of the swarm";
    if loaded.is_invite_only() {
        let admission = Admission::open(Arc::clone(&catalogue), tracker, Arc::new(SystemClock)).await;
        let admission = Arc::new(admission.context(action)?);
        return Ok((catalogue, Some(admission), settings));
    }
    // A single tracker in open mode would open the whole swarm.
    if catalogue.is_invite_only().await.context(action)? {
        let problem =
            "the swarm of this database is invite-only; set it to \"invite\", or use another database";
        return Err(loaded.invalid("swarm.admission", problem).into());
    }
    Ok((catalogue, None, settings))
}

/// Checks and normalizes an id or a prefix of an id.
fn parse_prefix(kind: &str, digits: &str) -> Result<String, Failure> {
    let is_valid =
        (MIN_PREFIX..=64).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_valid {
        return Ok(digits.to_lowercase());
    }
    let text =
        format!("invalid {kind} id {digits:?}; specify an id, or a prefix with at least {MIN_PREFIX} digits");
    Err(Failure::usage(text))
}

/// Returns the only id with a prefix.
fn single<T: Copy>(kind: &str, prefix: &str, found: &[T]) -> Result<T, Failure> {
    match found {
        [] => Err(Failure::not_found(format!("no {kind} has an id with the prefix {prefix}"))),
        [one] => Ok(*one),
        _ => Err(Failure::usage(format!("several {kind} ids have the prefix {prefix}; specify more digits"))),
    }
}

#[async_trait]
impl Execute for AdminService {
    async fn execute(&self, command: Command, _input: Input, events: Events) -> Result<(), Failure> {
        match command {
            Command::Invite { uses, lifetime_ms, read_only, trackers } => {
                let rights = if read_only { Rights::ReadOnly } else { Rights::Full };
                self.invite((uses, lifetime_ms), rights, trackers, &events).await
            }
            Command::Invitations => self.invitations(&events).await,
            Command::CancelInvitation { id } => self.cancel_invitation(&id, &events).await,
            Command::Peers => self.peers(&events).await,
            Command::Pins => self.pins(&events).await,
            Command::Unpin { query } => self.unpin(&query, &events).await,
            Command::Revoke { peer } => self.revoke(&peer, &events).await,
            Command::Reserve { name, peer } => self.reserve(name, peer, &events).await,
            _ => Err(Failure::usage(
                "a tracker cannot execute this command; specify the configuration of a peer with --config",
            )),
        }
    }
}
