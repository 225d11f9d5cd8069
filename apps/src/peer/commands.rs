//! What a node does for the command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use enjambre_core::download::get::{Get, get};
use enjambre_core::download::progress::{Phase, Progress};
use enjambre_core::library::entry::{Entry, Location, Origin};
use enjambre_core::library::error::LibraryError;
use enjambre_core::model::id::FileId;
use enjambre_core::model::name::Name;
use enjambre_core::model::record::{FileKind, Publication};
use enjambre_core::tracker::error::TrackerError;
use enjambre_core::tracker::presence::Presence;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::publication;
use super::{Node, Reach};
use crate::control::message::{Command, Event, Events, Execute, LibraryLine, NodeStatus, TrackerLine};
use crate::failure::Failure;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(200);
/// How long a download goes on before a disk counts as having room again: a few bytes at a time are no news.
const ROOM_LASTS: Duration = Duration::from_secs(5);
/// How often a tracker is asked how far its copy is.
const PIN_POLL: Duration = Duration::from_millis(500);

#[async_trait]
impl Execute for Node {
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure> {
        match command {
            Command::Publish { paths, name, store, pin } => {
                for path in paths {
                    let published = self.publish(path, name.clone(), store, &events).await?;
                    if pin {
                        self.pin(&published, &events).await?;
                    }
                }
                Ok(())
            }
            Command::Get { query, output, force, sync } => {
                self.get(&query, output, force, sync, &events).await
            }
            Command::Library => self.list(&events).await,
            Command::Export { query, output, force } => self.export(&query, output, force, &events).await,
            Command::Remove { query } => {
                let entry = self.shelf.library.find(&query)?;
                self.shelf.library.remove(&entry.id).await?;
                events.send(Event::Removed { name: entry.name, id: entry.id }).await;
                Ok(())
            }
            Command::Verify { query } => self.verify(query.as_deref(), &events).await,
            Command::Status => {
                events.send(Event::Status(self.status())).await;
                Ok(())
            }
            Command::Invite { .. }
            | Command::Invitations
            | Command::CancelInvitation { .. }
            | Command::Peers
            | Command::Revoke { .. }
            | Command::Reserve { .. } => {
                Err(Failure::usage("this is a peer; use the configuration of a tracker"))
            }
        }
    }
}

impl Node {
    fn presence(&self) -> Result<&Presence, Failure> {
        self.presence.as_deref().ok_or_else(|| {
            Failure::failed(
                "the library is in use by a short command that is not part of the swarm; try again",
            )
        })
    }

    async fn publish(
        &self,
        path: PathBuf,
        name: Option<Name>,
        store: bool,
        events: &Events,
    ) -> Result<Publication, Failure> {
        let presence = self.presence()?;
        let (published, publication) = publication::publish(&self.shelf.library, &path, name, store, events)
            .await
            .map_err(|failure| failure.context(format!("{} cannot be published", path.display())))?;
        let acknowledged = presence.publish(&publication).await.map_err(|error| {
            let unreached = matches!(error, TrackerError::Unreachable { .. });
            let failure = Failure::from(error);
            if unreached {
                let text = format!(
                    "{} is in the library and will be published as soon as a tracker is reached, but now {failure}",
                    publication.name
                );
                return Failure::unreachable(text);
            }
            failure.context(format!("{} is in the library, but no tracker took it", publication.name))
        })?;
        let event = Event::Published {
            name: publication.name.clone(),
            id: publication.id,
            size: published.size,
            kind: publication.kind,
            version: acknowledged.version,
            new: acknowledged.new,
        };
        events.send(event).await;
        for told in presence.status().into_iter().filter_map(|tracker| tracker.warning) {
            events.warn(told).await;
        }
        Ok(publication)
    }

    /// The size of a file, or of all files of a folder.
    async fn total_size(&self, publication: &Publication) -> u64 {
        match publication.kind {
            FileKind::File => publication.size,
            FileKind::Collection => match self.shelf.library.collection(&publication.id).await {
                Ok(collection) => collection.total_size(),
                Err(_) => publication.size,
            },
        }
    }

    async fn pin(&self, publication: &Publication, events: &Events) -> Result<(), Failure> {
        let presence = self.presence()?;
        let refused = |error: TrackerError| {
            Failure::from(error)
                .context(format!("{} is published, but no tracker keeps a copy", publication.name))
        };
        let total = self.total_size(publication).await;
        let mut ticks = interval(PIN_POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let progress = presence.pin(publication.id).await.map_err(refused)?;
            let name = publication.name.clone();
            if progress.held {
                events.send(Event::Pinned { name }).await;
                return Ok(());
            }
            if self.listen.is_empty() {
                return Err(Failure::failed(format!(
                    "{name} is published, but no tracker can fetch a copy of it: nothing is offered here, \
                     because the port of transport.listen is taken or none is set"
                )));
            }
            events.progress(Event::Pinning { name, done: progress.have.min(total), total });
        }
    }

    async fn get(
        &self,
        query: &str,
        output: Option<PathBuf>,
        force: bool,
        durable: bool,
        events: &Events,
    ) -> Result<(), Failure> {
        self.presence()?;
        let started = Instant::now();
        let (id, name, kind, size) = self.find(query, events).await?;
        let output = output.map(|path| match kind {
            // As `cp` does it.
            FileKind::File if path.is_dir() => path.join(name.as_str()),
            _ => path,
        });
        let what = Get { id, name: Some(name.clone()), kind, size, output: output.clone(), force, durable };
        let (progress, mut seen) = watch::channel(Progress { total: size, ..Progress::default() });
        let running = get(&self.shelf.downloader, &what, Arc::clone(&self.providers) as _, &progress);
        tokio::pin!(running);
        let mut ticks = interval(PROGRESS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut room = Room::default();
        let bytes = loop {
            tokio::select! {
                result = &mut running => break result.map_err(|error| Failure::from(&*error))?,
                _ = ticks.tick() => {
                    let now = *seen.borrow();
                    if let Some(message) = room.message(&name, now) {
                        events.warn(message).await;
                    }
                    if seen.has_changed().unwrap_or(false) {
                        events.progress(progress_event(*seen.borrow_and_update()));
                    }
                },
            }
        };
        let last = *seen.borrow();
        events.send(progress_event(Progress { done: bytes, total: bytes, ..last })).await;
        let seconds = started.elapsed().as_secs_f64();
        events.send(Event::Complete { name, id, path: output, bytes, seconds }).await;
        Ok(())
    }

    /// The trackers know the newest version; what is here in whole is found without them as well.
    async fn find(&self, query: &str, events: &Events) -> Result<(FileId, Name, FileKind, u64), Failure> {
        let here = match self.shelf.library.find(query) {
            Ok(entry) if entry.is_complete() => Some(entry),
            _ => None,
        };
        let found = |entry: Entry| {
            let name = entry.name.clone().or_else(|| unnamed(&entry.id))?;
            Some((entry.id, name, entry.kind, entry.size))
        };
        if query.parse::<FileId>().is_ok()
            && let Some(found) = here.clone().and_then(found)
        {
            return Ok(found);
        }
        match self.trackers.find(query).await {
            Ok(file) => Ok((file.id, file.name, file.kind, file.size)),
            Err(error @ (TrackerError::NotFound { .. } | TrackerError::Unreachable { .. })) => {
                let Some(found) = here.and_then(found) else { return Err(error.into()) };
                if matches!(error, TrackerError::Unreachable { .. }) {
                    events.warn(format!("{error}; taking what the library has")).await;
                }
                Ok(found)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn list(&self, events: &Events) -> Result<(), Failure> {
        let library = &self.shelf.library;
        for entry in library.entries() {
            let Some(name) = entry.name.clone() else { continue };
            let (content, path) = match &entry.location {
                Location::Database => ("database", None),
                Location::Files => ("files", None),
                Location::Linked { path } => ("linked", Some(path.clone())),
            };
            let mut line = LibraryLine {
                name,
                id: entry.id,
                size: entry.size,
                pieces: entry.pieces,
                have: entry.have,
                content: content.to_owned(),
                path,
                kind: entry.kind,
                withdrawn: entry.withdrawn,
            };
            if entry.kind == FileKind::Collection
                && let Ok(collection) = library.collection(&entry.id).await
            {
                line.size = collection.total_size();
                for member in collection.members() {
                    let Some(entry) = library.entry(&member.id) else {
                        // Not known yet how many; so it does not look complete.
                        line.pieces = line.pieces.saturating_add(1);
                        continue;
                    };
                    line.pieces = line.pieces.saturating_add(entry.pieces);
                    line.have = line.have.saturating_add(entry.have);
                }
            }
            events.send(Event::File(line)).await;
        }
        Ok(())
    }

    async fn export(
        &self,
        query: &str,
        output: PathBuf,
        force: bool,
        events: &Events,
    ) -> Result<(), Failure> {
        let library = &self.shelf.library;
        let entry = library.find(query)?;
        let name = entry.name.clone().or_else(|| unnamed(&entry.id));
        let path = match (entry.kind, &name) {
            (FileKind::File, Some(name)) if output.is_dir() => output.join(name.as_str()),
            _ => output,
        };
        library.export(&entry.id, &path, force).await?;
        let bytes = match entry.kind {
            FileKind::File => entry.size,
            FileKind::Collection => library.collection(&entry.id).await?.total_size(),
        };
        events.send(Event::Exported { id: entry.id, path, bytes }).await;
        Ok(())
    }

    async fn verify(&self, query: Option<&str>, events: &Events) -> Result<(), Failure> {
        let library = &self.shelf.library;
        let mut entries = match query {
            Some(query) => vec![library.find(query)?],
            None => library.entries(),
        };
        if query.is_some() && entries[0].kind == FileKind::Collection {
            let collection = library.collection(&entries[0].id).await?;
            entries.extend(collection.members().iter().filter_map(|member| library.entry(&member.id)));
            entries[1..].sort_by_key(|entry| entry.id);
            entries.dedup_by_key(|entry| entry.id);
        }
        let mut damaged = 0_u64;
        for entry in entries {
            let report = match library.verify(&entry.id).await {
                Ok(report) => report,
                // Removed meanwhile.
                Err(LibraryError::NotFound { .. }) => continue,
                Err(error @ LibraryError::Changed { .. }) => {
                    damaged += 1;
                    events.warn(error.to_string()).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            damaged += u64::from(!report.bad.is_empty());
            let event = Event::Verified {
                name: entry.name,
                id: entry.id,
                good: u64::from(report.good),
                bad: report.bad.len() as u64,
                missing: u64::from(report.missing),
            };
            events.send(event).await;
        }
        match damaged {
            0 => Ok(()),
            count => Err(Failure::failed(format!(
                "{count} of the files are not what they were; what is wrong is no longer offered, and `get` fetches it again"
            ))),
        }
    }

    fn status(&self) -> NodeStatus {
        let entries = self.shelf.library.entries();
        let held = |entry: &Entry| {
            // The last piece may be shorter; that is near enough for a sum.
            let share = u128::from(entry.size) * u128::from(entry.have) / u128::from(entry.pieces.max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        let tracker = |state: enjambre_core::tracker::presence::TrackerState| TrackerLine {
            endpoint: state.endpoint,
            connected: state.connected,
            problem: state.last_error.or(state.warning),
        };
        NodeStatus {
            peer: self.key.peer_id(),
            pid: std::process::id(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.started.elapsed().as_secs_f64(),
            daemon: self.reach == Reach::Daemon,
            listen: self.listen.clone(),
            files: entries.len() as u64,
            published: entries.iter().filter(|entry| entry.origin == Origin::Published).count() as u64,
            bytes: entries.iter().map(held).sum(),
            sent: self.shelf.seeder.sent(),
            trackers: self
                .presence
                .as_ref()
                .map_or_else(Vec::new, |presence| presence.status().into_iter().map(tracker).collect()),
        }
    }
}

/// What the user is told of a full disk: once that the download waits, and once that it goes on.
#[derive(Debug, Default)]
struct Room {
    waiting: bool,
    /// Since when there has been room, while that is not taken for lasting.
    found: Option<Instant>,
}

impl Room {
    fn message(&mut self, name: &Name, progress: Progress) -> Option<String> {
        let full = progress.phase == Phase::DiskFull;
        match (self.waiting, full) {
            (false, true) => {
                self.waiting = true;
                self.found = None;
                Some(format!(
                    "there is no room left on the disk: {name} waits with {} of {} bytes, and goes on by itself \
                     once there is room",
                    progress.done, progress.total
                ))
            }
            (true, true) => {
                self.found = None;
                None
            }
            (true, false) => {
                let found = *self.found.get_or_insert_with(Instant::now);
                (found.elapsed() >= ROOM_LASTS).then(|| {
                    self.waiting = false;
                    format!("there is room on the disk again: {name} goes on")
                })
            }
            (false, false) => None,
        }
    }
}

fn progress_event(progress: Progress) -> Event {
    Event::Progress { done: progress.done, total: progress.total, providers: progress.sources }
}

/// What a file is called that is here without a name.
fn unnamed(id: &FileId) -> Option<Name> {
    format!("{}.bin", id.short()).parse().ok()
}
