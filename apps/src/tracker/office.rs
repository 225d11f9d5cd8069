//! What a tracker does for its owner: invitations, who is in, throwing out, reserved names. In the running tracker it is behind
//! the control socket; without one it works on the tracker's database alone.

use std::sync::Arc;

use async_trait::async_trait;
use enjambre_core::catalogue::Catalogue;
use enjambre_core::catalogue::error::CatalogueError;
use enjambre_core::catalogue::members::OpenInvitation;
use enjambre_core::clock::{Clock, SystemClock};
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::PeerId;
use enjambre_core::model::name::Name;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::{Role, Storage};
use enjambre_core::swarm::invitation::{Invitation, MAX_TRACKERS, Secret, SecretHash};
use enjambre_core::swarm::membership::Rights;
use enjambre_core::tracker::admission::Admission;
use enjambre_core::tracker::settings::TrackerSettings;

use super::{noted_endpoints, open_admission};
use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::control::message::{Command, Event, Events, Execute, InvitationLine, MemberLine};
use crate::data_dir::DataDir;
use crate::failure::{Failure, Status};
use crate::node_key;
use crate::registry::{Place, Registry};

/// How few digits of an id are enough to name a peer or an invitation.
const FEWEST_DIGITS: usize = 4;

/// What works for the owner of a tracker.
#[derive(Debug)]
pub struct Office {
    catalogue: Arc<Catalogue>,
    /// None where everybody is let in.
    admission: Option<Arc<Admission>>,
    /// Where peers reach this tracker.
    endpoints: Vec<Endpoint>,
}

/// An office without a running tracker.
#[derive(Debug)]
pub struct LoneOffice {
    /// What it does.
    pub office: Office,
    storage: Arc<dyn Storage>,
    _data_dir: DataDir,
}

impl LoneOffice {
    /// Opens the database of a tracker that does not run, in a folder that this process owns.
    pub async fn open(registry: &Registry, loaded: &Loaded, data_dir: DataDir) -> Result<Self, Failure> {
        let folder = data_dir.path().to_owned();
        let (key, noted) = crate::blocking({
            let folder = folder.clone();
            move || Ok((node_key::load_or_create(&folder)?, noted_endpoints(&folder)))
        })
        .await?;
        let place = Place {
            data_dir: folder,
            kind: NodeKind::Tracker,
            store: false,
            role: Role::Records,
            scratch: None,
        };
        let storage = registry.open_storage(loaded, place).await?;
        let rules =
            TrackerSettings { lease: loaded.config.tracker.lease.get(), ..TrackerSettings::default() };
        let opened = async {
            let catalogue = Catalogue::open(Arc::clone(&storage), rules.rules(), SystemClock.now_ms()).await;
            let catalogue = Arc::new(catalogue.map_err(|error| {
                Failure::from_error(Status::Failed, &error).context("the catalogue cannot be opened")
            })?);
            let admission = open_admission(loaded, &catalogue, key.peer_id()).await?;
            let listen = &loaded.config.transport.listen;
            let fixed = listen.iter().all(|endpoint| endpoint.port() != 0);
            let listen = if fixed || noted.is_empty() { listen } else { &noted };
            let known = |endpoint: &Endpoint| {
                endpoint.with_id(registry.is_authenticated(endpoint).then(|| key.peer_id()))
            };
            let listen = listen.iter().map(known).collect();
            Ok(Office::new(registry, loaded, catalogue, admission, listen))
        };
        match opened.await {
            Ok(office) => Ok(Self { office, storage, _data_dir: data_dir }),
            Err(failure) => {
                // Nothing was written, so the first failure is the one to tell.
                let _ = storage.close().await;
                Err(failure)
            }
        }
    }

    /// Lets go of the database.
    pub async fn close(self) -> Result<(), Failure> {
        self.storage.close().await.map_err(|error| Failure::from_error(Status::Failed, &error))
    }
}

impl Office {
    /// For a tracker that listens at these endpoints.
    pub fn new(
        registry: &Registry,
        loaded: &Loaded,
        catalogue: Arc<Catalogue>,
        admission: Option<Arc<Admission>>,
        listen: Vec<Endpoint>,
    ) -> Self {
        let me = listen.iter().find_map(Endpoint::id);
        let advertise = &loaded.config.transport.advertise;
        let told = if advertise.is_empty() { listen } else { advertise.clone() };
        let known = |endpoint: Endpoint| match registry.is_authenticated(&endpoint) {
            true => endpoint.with_id(me),
            false => endpoint,
        };
        let reachable = |endpoint: &Endpoint| {
            endpoint.id().is_some() && endpoint.port() != 0 && !endpoint.is_unspecified()
        };
        let endpoints = told.into_iter().map(known).filter(reachable).collect();
        Self { catalogue, admission, endpoints }
    }

    fn admission(&self) -> Result<&Admission, Failure> {
        self.admission.as_deref().ok_or_else(|| {
            Failure::usage("this swarm is open, so everybody is let in; set swarm.admission = \"invited\" at its trackers")
        })
    }

    async fn invite(
        &self,
        (uses, millis): (u32, u64),
        rights: Rights,
        others: Vec<Endpoint>,
        events: &Events,
    ) -> Result<(), Failure> {
        let admission = self.admission()?;
        if uses == 0 || millis == 0 {
            return Err(Failure::usage("an invitation is for one peer at least, and for some time"));
        }
        let mut trackers = self.endpoints.clone();
        if let Some(other) = others.iter().find(|other| other.id().is_none()) {
            return Err(Failure::usage(format!(
                "{other} does not say who is there; write SCHEME://ID@HOST:PORT"
            )));
        }
        trackers.extend(others);
        trackers.dedup();
        if trackers.is_empty() {
            return Err(Failure::usage(
                "nobody could be told where this tracker is, because it listens at every address; \
                 set transport.advertise to where others reach it",
            ));
        }
        if trackers.len() > MAX_TRACKERS {
            return Err(Failure::usage(format!("an invitation names at most {MAX_TRACKERS} endpoints")));
        }
        if trackers.iter().all(Endpoint::is_loopback) {
            let text = "this invitation is good on this machine only; set transport.advertise to where others reach this tracker";
            events.warn(text).await;
        }
        let now = SystemClock.now_ms();
        let (secret, until) = (Secret::generate(), now.saturating_add(millis));
        self.catalogue.invite(secret.hash(), rights, uses, until, now).await.map_err(database)?;
        let authority = *admission.authority().key();
        let id = secret.hash().to_string();
        let invitation = Invitation { authority, secret, until, trackers }.to_string();
        events.send(Event::Invitation { invitation, id, uses, until_ms: until }).await;
        Ok(())
    }

    async fn invitations(&self, events: &Events) -> Result<(), Failure> {
        self.admission()?;
        let now = SystemClock.now_ms();
        let mut after = None;
        loop {
            let page = self.catalogue.invitations(after.as_ref(), now).await.map_err(database)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            for invitation in page.iter().filter(|invitation| now < invitation.until) {
                events.send(Event::OpenInvitation(line(invitation))).await;
            }
        }
    }

    async fn cancel_invitation(&self, digits: &str, events: &Events) -> Result<(), Failure> {
        self.admission()?;
        let digits = id_digits("invitation", digits)?;
        let found = self.catalogue.invitations_beginning(&digits).await.map_err(database)?;
        let id = one_of("invitation", &digits, &found)?;
        if !self.catalogue.cancel_invitation(id).await.map_err(database)? {
            return Err(Failure::not_found(format!("the invitation {digits} was used up a moment ago")));
        }
        events.send(Event::Cancelled { id: id.to_string() }).await;
        Ok(())
    }

    async fn peers(&self, events: &Events) -> Result<(), Failure> {
        self.admission()?;
        let mut after = None;
        loop {
            let page = self.catalogue.members(after.as_ref(), SystemClock.now_ms()).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.peer);
            for member in page {
                let line = MemberLine {
                    peer: member.peer,
                    rights: member.rights,
                    joined_ms: member.joined,
                    seen_ms: member.seen,
                    alive: member.alive,
                    revoked_ms: member.revoked,
                    invitations: member.invitations.iter().map(SecretHash::to_string).collect(),
                };
                events.send(Event::Member(line)).await;
            }
        }
    }

    async fn revoke(&self, peer: &str, events: &Events) -> Result<(), Failure> {
        let admission = self.admission()?;
        let peer = self.peer(peer).await?;
        let revoked = self.catalogue.revoke(&peer, SystemClock.now_ms()).await?;
        if let Err(error) = admission.refresh().await {
            let error = Failure::from_error(Status::Failed, &error).message;
            let text = format!(
                "{peer} is thrown out, but what is open to it here is closed some seconds later: {error}"
            );
            events.warn(text).await;
        }
        if revoked.came_unnoted {
            let text = "it is not known by which invitation this peer came in, so none is cancelled; look at `enjambre invite --list`, \
                        and end those that it may know with `enjambre invite --cancel ID`";
            events.warn(text).await;
        }
        if revoked.ahead {
            let text = "the list of revocations is of a time more than a day ahead of the clock of this machine, and no peer takes \
                        such a list: trackers keep this peer out from now on, peers only when its membership ends, within a day. Set \
                        the clock; where it is right and another one was wrong, see docs/SECURITY.md";
            events.warn(text).await;
        }
        let cancelled = revoked.cancelled.iter().map(line).collect();
        events.send(Event::Revoked { peer, new: revoked.new, cancelled }).await;
        Ok(())
    }

    async fn reserve(&self, name: Name, peer: Option<String>, events: &Events) -> Result<(), Failure> {
        let by = match peer {
            Some(peer) => {
                let peer = self.peer(&peer).await?;
                self.catalogue.reserve(&name, peer, SystemClock.now_ms()).await.map_err(database)?;
                Some(peer)
            }
            None if self.catalogue.release(&name).await.map_err(database)? => None,
            None => return Err(Failure::not_found(format!("the name {name} is not reserved"))),
        };
        events.send(Event::Reserved { name, by }).await;
        Ok(())
    }

    /// The peer of an id or of the first digits of one.
    async fn peer(&self, digits: &str) -> Result<PeerId, Failure> {
        if let Ok(peer) = digits.parse() {
            return Ok(peer);
        }
        let digits = id_digits("peer", digits)?;
        one_of("peer", &digits, &self.catalogue.peers_beginning(&digits).await.map_err(database)?)
    }
}

fn database(error: StorageError) -> Failure {
    Failure::from_error(Status::Failed, &error)
}

fn line(invitation: &OpenInvitation) -> InvitationLine {
    let OpenInvitation { id, rights, uses, until, made } = *invitation;
    InvitationLine { id: id.to_string(), rights, uses, until_ms: until, made_ms: made }
}

/// The digits of an id, or its first ones, as they are compared.
fn id_digits(what: &str, digits: &str) -> Result<String, Failure> {
    let is_one =
        (FEWEST_DIGITS..=64).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_one {
        return Ok(digits.to_lowercase());
    }
    let text = format!(
        "{digits:?} is not the id of a {what}, and not the first {FEWEST_DIGITS} or more digits of one"
    );
    Err(Failure::usage(text))
}

/// The one that is meant by some digits.
fn one_of<T: Copy>(what: &str, digits: &str, found: &[T]) -> Result<T, Failure> {
    match found {
        [] => Err(Failure::not_found(format!("no {what} has an id that begins with {digits}"))),
        [one] => Ok(*one),
        _ => Err(Failure::usage(format!("several have ids that begin with {digits}; give more digits"))),
    }
}

impl From<CatalogueError> for Failure {
    fn from(error: CatalogueError) -> Self {
        let status = match &error {
            CatalogueError::NotFound { .. } => Status::NotFound,
            _ => Status::Failed,
        };
        Self::from_error(status, &error)
    }
}

#[async_trait]
impl Execute for Office {
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure> {
        match command {
            Command::Invite { uses, millis, read_only, trackers } => {
                let rights = if read_only { Rights::ReadOnly } else { Rights::Full };
                self.invite((uses, millis), rights, trackers, &events).await
            }
            Command::Invitations => self.invitations(&events).await,
            Command::CancelInvitation { id } => self.cancel_invitation(&id, &events).await,
            Command::Peers => self.peers(&events).await,
            Command::Revoke { peer } => self.revoke(&peer, &events).await,
            Command::Reserve { name, peer } => self.reserve(name, peer, &events).await,
            _ => Err(Failure::usage("this is a tracker; use the configuration of a peer")),
        }
    }
}
