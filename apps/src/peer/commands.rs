//! Executes the commands of the command line on a node.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use enjambre_core::{Collection, FileId, FileKind, Name, Publication};
use enjambre_swarm::download::get::{GetRequest, get};
use enjambre_swarm::download::request::{Phase, Progress};
use enjambre_swarm::library::entry::{Entry, Location, Origin};
use enjambre_swarm::library::error::LibraryError;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::library::publish::{PublishOptions, PublishProgress};
use enjambre_swarm::tracker_client::error::TrackerError;
use enjambre_swarm::tracker_client::presence::{Presence, TrackerState};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::{Node, Reach};
use crate::control::message::{Command, Event, Events, Execute, LibraryLine, NodeStatus, TrackerLine};
use crate::failure::{Failure, ResultContext};

/// Interval of progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long a download must run before the disk counts as no longer full, so that a few freed bytes are not reported.
const DISK_FREE_DELAY: Duration = Duration::from_secs(5);
/// Interval of requests for the progress of a replica.
const PIN_INTERVAL: Duration = Duration::from_millis(500);

#[async_trait]
impl Execute for Node {
    async fn execute(&self, command: Command, events: Events) -> Result<(), Failure> {
        match command {
            Command::Publish { paths, name, store, pin } => {
                for path in paths {
                    let (publication, size) = self.publish(&path, name.clone(), store, &events).await?;
                    if pin {
                        self.pin(&publication, size, &events).await?;
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
                let entry = self.services.library.find(&query)?;
                self.services.library.remove(&entry.id).await?;
                events.send(Event::Removed { name: entry.name, id: entry.id }).await;
                Ok(())
            }
            Command::Verify { query } => self.verify(query.as_deref(), &events).await,
            Command::Status => {
                events.send(Event::Status(self.status())).await;
                Ok(())
            }
            _ => Err(Failure::usage("command not supported by a peer; use the configuration of a tracker")),
        }
    }
}

impl Node {
    fn presence(&self) -> Result<&Presence, Failure> {
        self.presence.as_deref().ok_or_else(|| {
            Failure::failed(
                "the library is in use by a command that does not participate in the swarm; try again",
            )
        })
    }

    /// Adds a file or directory to the library. Returns the publication, which is now in the outbox as well, and the size of
    /// the file or of all members of the directory.
    async fn add(
        &self,
        path: &Path,
        name: Option<Name>,
        store: bool,
        events: &Events,
    ) -> Result<(Publication, u64), Failure> {
        let library = &self.services.library;
        let (shown, sink) = (path.to_owned(), events.clone());
        let progress = move |PublishProgress { done, total, .. }: PublishProgress| {
            sink.progress(Event::Hashing { path: shown.clone(), done, total });
        };
        let published = library.publish(path, PublishOptions { name, store }, progress).await?;
        if published.skipped_links > 0 {
            let count = published.skipped_links;
            events.warn(format!("{}: skipped {count} symbolic links", path.display())).await;
        }
        // For a directory the publication contains the size of the encoded collection, not that of its files.
        let entry = library.entry(&published.id).ok_or_else(|| {
            Failure::failed(format!("{} was removed during the publication", published.name))
        })?;
        let (name, size) = (published.name, published.size);
        Ok((Publication { name, id: entry.id, size: entry.size, kind: entry.kind }, size))
    }

    async fn publish(
        &self,
        path: &Path,
        name: Option<Name>,
        store: bool,
        events: &Events,
    ) -> Result<(Publication, u64), Failure> {
        let presence = self.presence()?;
        let added = self.add(path, name, store, events).await;
        let (publication, size) = added.context(format!("cannot publish {}", path.display()))?;
        let acknowledged = presence.publish(&publication).await;
        let outcome = match &acknowledged {
            Err(TrackerError::Unreachable { .. }) => {
                "; a running peer publishes it when a tracker is reachable"
            }
            _ => ", but trackers refused the publication",
        };
        let acknowledged =
            acknowledged.context(format!("{} is in the library{outcome}", publication.name))?;
        let event = Event::Published {
            name: publication.name.clone(),
            id: publication.id,
            size,
            kind: publication.kind,
            version: acknowledged.version,
            new: acknowledged.new,
        };
        events.send(event).await;
        for warning in presence.status().into_iter().filter_map(|tracker| tracker.warning) {
            events.warn(warning).await;
        }
        Ok((publication, size))
    }

    async fn pin(&self, publication: &Publication, total: u64, events: &Events) -> Result<(), Failure> {
        let presence = self.presence()?;
        let mut ticks = interval(PIN_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let name = publication.name.clone();
            let progress = presence.pin(publication.id).await;
            let progress =
                progress.context(format!("{name} is published, but no tracker stores a replica"))?;
            if progress.complete {
                events.send(Event::Pinned { name }).await;
                return Ok(());
            }
            if self.listen.is_empty() {
                return Err(Failure::failed(format!(
                    "{name} is published, but trackers cannot fetch a replica: this node offers no files, because \
                     the port of transport.listen is in use or not set"
                )));
            }
            events.progress(Event::Pinning { name, done: progress.stored.min(total), total });
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
            // As in `cp`.
            FileKind::File if path.is_dir() => path.join(name.as_str()),
            _ => path,
        });
        let stored = self.stored_bytes(&id).await;
        let request =
            GetRequest { id, name: Some(name.clone()), kind, size, output: output.clone(), force, durable };
        let (progress, mut updates) = watch::channel(Progress { total: size, ..Progress::default() });
        let running = get(&self.services.downloader, &request, Arc::clone(&self.trackers) as _, &progress);
        tokio::pin!(running);
        let mut ticks = interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut disk = DiskState::default();
        let bytes = loop {
            tokio::select! {
                result = &mut running => break result.map_err(|error| Failure::from(&*error))?,
                _ = ticks.tick() => {
                    let now = *updates.borrow();
                    if let Some(message) = disk.message(&name, now) {
                        events.warn(message).await;
                    }
                    if updates.has_changed().unwrap_or(false) {
                        events.progress(progress_event(*updates.borrow_and_update()));
                    }
                },
            }
        };
        let last = *updates.borrow();
        events.send(progress_event(Progress { done: bytes, total: bytes, ..last })).await;
        let seconds = started.elapsed().as_secs_f64();
        let path = output.or_else(|| match self.services.library.entry(&id)?.location {
            Location::Linked { path } => Some(path),
            _ => None,
        });
        let received = bytes.saturating_sub(stored);
        events.send(Event::Complete { name, id, path, bytes, received, seconds }).await;
        Ok(())
    }

    /// Returns the stored bytes of a file, or of the members of a directory.
    async fn stored_bytes(&self, id: &FileId) -> u64 {
        let library = &self.services.library;
        let stored = |id: &FileId| library.entry(id).map_or(0, |entry| entry.stored_bytes());
        match library.collection(id).await {
            Ok(collection) => collection.members().iter().map(|member| stored(&member.id)).sum(),
            Err(_) => stored(id),
        }
    }

    /// Looks up a file at the trackers, which know the newest version. Falls back to complete files of the library.
    async fn find(&self, query: &str, events: &Events) -> Result<(FileId, Name, FileKind, u64), Failure> {
        let local = match self.services.library.find(query) {
            Ok(entry) if entry.is_complete() => Some(entry),
            _ => None,
        };
        let found = |entry: Entry| {
            let name = entry.name.clone().or_else(|| default_name(&entry.id))?;
            Some((entry.id, name, entry.kind, entry.size))
        };
        if query.parse::<FileId>().is_ok()
            && let Some(found) = local.clone().and_then(found)
        {
            return Ok(found);
        }
        match self.trackers.find(query).await {
            Ok(file) => Ok((file.id, file.name, file.kind, file.size)),
            Err(error @ (TrackerError::NotFound { .. } | TrackerError::Unreachable { .. })) => {
                let Some(found) = local.and_then(found) else { return Err(error.into()) };
                if matches!(error, TrackerError::Unreachable { .. }) {
                    events.warn(format!("{error}; using the file in the library")).await;
                }
                Ok(found)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn list(&self, events: &Events) -> Result<(), Failure> {
        let library = &self.services.library;
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
                available_pieces: entry.have,
                content: content.to_owned(),
                path,
                kind: entry.kind,
                withdrawn: entry.withdrawn,
            };
            if entry.kind == FileKind::Collection
                && let Ok(collection) = library.collection(&entry.id).await
            {
                if let Some(folder) = linked_folder(library, &collection) {
                    (line.content, line.path) = ("linked".to_owned(), Some(folder));
                }
                line.size = collection.total_size();
                for member in collection.members() {
                    let Some(entry) = library.entry(&member.id) else {
                        // The number of pieces is unknown; one missing piece marks the collection as incomplete.
                        line.pieces = line.pieces.saturating_add(1);
                        continue;
                    };
                    line.pieces = line.pieces.saturating_add(entry.pieces);
                    line.available_pieces = line.available_pieces.saturating_add(entry.have);
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
        let library = &self.services.library;
        let entry = library.find(query)?;
        let name = entry.name.clone().or_else(|| default_name(&entry.id));
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
        let library = &self.services.library;
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
        let members = self.member_names(&entries).await;
        let mut damaged = 0_u64;
        for entry in entries {
            let report = match library.verify(&entry.id).await {
                Ok(report) => report,
                // Removed concurrently.
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
                name: entry.name.map(|name| name.to_string()).or_else(|| members.get(&entry.id).cloned()),
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
                "damaged files: {count}; their damaged pieces are no longer offered; run `get` to download them again"
            ))),
        }
    }

    /// Returns `NAME/PATH` of the members of the directories among these entries.
    async fn member_names(&self, entries: &[Entry]) -> HashMap<FileId, String> {
        let mut names = HashMap::new();
        for entry in entries.iter().filter(|entry| entry.kind == FileKind::Collection) {
            let Some(name) = &entry.name else { continue };
            // An incomplete directory has no list of members yet; a damaged one is reported by its verification.
            let Ok(collection) = self.services.library.collection(&entry.id).await else { continue };
            let paths = collection.members().iter();
            names.extend(paths.map(|member| (member.id, format!("{name}/{}", member.path.as_str()))));
        }
        names
    }

    fn status(&self) -> NodeStatus {
        let entries = self.services.library.entries();
        // A member of a directory has no name of its own.
        let named = || entries.iter().filter(|entry| entry.name.is_some());
        let tracker = |state: TrackerState| TrackerLine {
            endpoint: state.endpoint,
            connected: state.connected,
            problem: state.last_error.or(state.warning),
        };
        NodeStatus {
            peer: self.key.peer_id(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            daemon: self.reach == Reach::Daemon,
            listen: self.listen.clone(),
            files: named().count() as u64,
            published: named().filter(|entry| entry.origin == Origin::Published).count() as u64,
            content_bytes: entries.iter().map(Entry::stored_bytes).sum(),
            sent_bytes: self.services.seeder.sent_bytes(),
            trackers: self
                .presence
                .as_ref()
                .map_or_else(Vec::new, |presence| presence.status().into_iter().map(tracker).collect()),
        }
    }
}

/// Tracks a full disk during a download, to report its start and its end once each.
#[derive(Debug, Default)]
struct DiskState {
    is_full: bool,
    /// When the download resumed.
    resumed: Option<Instant>,
}

impl DiskState {
    fn message(&mut self, name: &Name, progress: Progress) -> Option<String> {
        if progress.phase == Phase::DiskFull {
            self.resumed = None;
            return (!std::mem::replace(&mut self.is_full, true)).then(|| {
                format!(
                    "disk full: the download of {name} waits at {} of {} bytes and resumes when there is free space",
                    progress.done, progress.total
                )
            });
        }
        if !self.is_full || self.resumed.get_or_insert_with(Instant::now).elapsed() < DISK_FREE_DELAY {
            return None;
        }
        self.is_full = false;
        Some(format!("disk no longer full: the download of {name} resumed"))
    }
}

/// Returns the directory of the user that contains the linked members of a collection. If these are in several directories,
/// returns the one that contains most of them.
fn linked_folder(library: &Library, collection: &Collection) -> Option<PathBuf> {
    let mut folders: HashMap<PathBuf, u32> = HashMap::new();
    for member in collection.members() {
        let relative = Path::new(member.path.as_str());
        if let Some(Entry { location: Location::Linked { path }, .. }) = library.entry(&member.id)
            && path.ends_with(relative)
            && let Some(folder) = path.ancestors().nth(relative.components().count())
        {
            *folders.entry(folder.to_owned()).or_default() += 1;
        }
    }
    folders.into_iter().max_by_key(|(_, members)| *members).map(|(folder, _)| folder)
}

fn progress_event(progress: Progress) -> Event {
    Event::Progress { done: progress.done, total: progress.total, providers: progress.providers }
}

/// Returns the name for a file without a name.
fn default_name(id: &FileId) -> Option<Name> {
    format!("{}.bin", id.short()).parse().ok()
}
