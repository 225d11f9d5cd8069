//! Downloads of the command line: files, directories, parts of directories, and lists of their files.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enjambre_control::{CONTENT_BYTES, Event, Events, Failure, Output, ResultContext};
use enjambre_core::storage::database_file::create_dir;
use enjambre_core::{FileId, FileKind, MemberPath, Name};
use enjambre_swarm::download::error::DownloadError;
use enjambre_swarm::download::get::{GetRequest, Stored, get_list, get_selected};
use enjambre_swarm::download::request::{Phase, Progress};
use enjambre_swarm::download::selection::{Selection, Summary, member};
use enjambre_swarm::library::entry::Location;
use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::Node;
use crate::find::{Found, find};

/// Interval of progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long a download must run before the disk counts as no longer full, so that a few freed bytes are not reported.
const DISK_FREE_DELAY: Duration = Duration::from_secs(5);

/// The options of a download.
#[derive(Debug, Clone, Copy)]
pub(super) struct GetOptions<'a> {
    pub(super) output: &'a Output,
    pub(super) force: bool,
    pub(super) sync: bool,
}

/// A file to download: a file or directory of the catalogue, or a part of a directory.
struct Wanted {
    id: FileId,
    name: Name,
    kind: FileKind,
    size: u64,
    part: Option<MemberPath>,
}

impl Node {
    /// Downloads a file, a directory or a part of one.
    pub(super) async fn get(
        &self,
        query: &str,
        options: GetOptions<'_>,
        events: &Events,
    ) -> Result<(), Failure> {
        self.presence()?;
        let started = Instant::now();
        let Wanted { mut id, mut name, mut kind, mut size, part } = self.find_part(query, events).await?;
        let mut request = GetRequest {
            id,
            name: Some(name.clone()),
            kind,
            size,
            output: None,
            force: options.force,
            durable: options.sync,
        };
        let (progress, updates) = watch::channel(Progress { total: size, ..Progress::default() });
        let found = name.clone();
        let trackers = || Arc::clone(&self.trackers) as _;
        if let Some(path) = &part {
            let listing = get_list(&self.services.downloader, &request, trackers(), &progress);
            let list = self.follow(listing, &name, updates.clone(), events).await?;
            name = path.file_name().parse().unwrap_or(name);
            if let Some(file) = member(&list, path) {
                (id, kind, size) = (file.id, FileKind::of_file(file.executable), file.size);
                progress.send_replace(Progress { total: size, ..Progress::default() });
            }
        }
        if *options.output == Output::Client && kind == FileKind::Collection {
            return Err(Failure::usage(format!(
                "{query} is a directory; only a file can be written to a stream"
            )));
        }
        if let Output::Path { path, into } = options.output {
            request.output = Some(output_path(path, *into, &name, kind).await?);
        }
        let (sink, shown) = (events.clone(), name.clone());
        let on_list = move |summary: Summary| {
            let (sink, name) = (sink.clone(), shown.clone());
            async move { sink.send(directory_event(name, &summary)).await }.boxed()
        };
        let stored = self.stored_bytes(&id).await;
        let subdirectory = part.as_ref().filter(|_| kind == FileKind::Collection).map(ToString::to_string);
        let selection = Selection { path: part, on_list: Some(&on_list) };
        let running = get_selected(&self.services.downloader, &request, &selection, trackers(), &progress);
        let Stored { bytes, path } = self.follow(running, &name, updates.clone(), events).await?;
        let last = *updates.borrow();
        events.send(progress_event(Progress { done: bytes, total: bytes, ..last })).await;
        if *options.output == Output::Client {
            self.send_content(&id, events).await?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let path = path.or_else(|| match self.services.library.entry(&id)?.location {
            Location::Linked { path } => Some(path),
            _ => None,
        });
        let inode = match &path {
            Some(path) => {
                let found = tokio::fs::metadata(path).await;
                let moved = || format!("{} was moved or deleted during the download", path.display());
                Some(found.map_err(Failure::from).context(moved())?.ino())
            }
            None => None,
        };
        let received = bytes.saturating_sub(stored);
        let name = if subdirectory.is_some() { found } else { name };
        events.send(Event::Complete { name, subdirectory, id, path, inode, bytes, received, seconds }).await;
        Ok(())
    }

    /// Lists the files of a directory or of a part of one.
    pub(super) async fn contents(&self, query: &str, events: &Events) -> Result<(), Failure> {
        self.presence()?;
        let Wanted { id, name, kind, size, part } = self.find_part(query, events).await?;
        let request = GetRequest { id, name: None, kind, size, output: None, force: false, durable: false };
        if kind != FileKind::Collection {
            return Err(Failure::usage(format!("{name} is a file, not a directory")));
        }
        let (progress, updates) = watch::channel(Progress { total: size, ..Progress::default() });
        let listing =
            get_list(&self.services.downloader, &request, Arc::clone(&self.trackers) as _, &progress);
        let list = self.follow(listing, &name, updates, events).await?;
        let is_inside = |path: &MemberPath| {
            part.as_ref().is_none_or(|part| path == part || path.relative_to(part).is_some())
        };
        let mut found = false;
        for member in list.members().iter().filter(|member| is_inside(&member.path)) {
            found = true;
            let (path, size, executable) = (member.path.to_string(), member.size, member.executable);
            events.send(Event::DirectoryEntry { path, size, executable }).await;
        }
        match part.filter(|_| !found) {
            Some(part) => Err(Failure::from(&DownloadError::NoMember(part))),
            None => Ok(()),
        }
    }

    /// Waits for a download and reports its progress.
    async fn follow<T>(
        &self,
        running: impl Future<Output = Result<T, Arc<DownloadError>>>,
        name: &Name,
        mut updates: watch::Receiver<Progress>,
        events: &Events,
    ) -> Result<T, Failure> {
        tokio::pin!(running);
        let mut ticks = interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut disk = DiskState::default();
        loop {
            tokio::select! {
                result = &mut running => {
                    let failed = |error: Arc<DownloadError>| {
                        Failure::from(&*error).context(format!("cannot download {name}"))
                    };
                    return result.map_err(failed);
                }
                _ = ticks.tick() => {
                    let now = *updates.borrow();
                    if let Some(message) = disk.message(name, now, || self.services.downloader.full_disk()) {
                        events.warn(message).await;
                    }
                    if updates.has_changed().unwrap_or(false) {
                        events.progress(progress_event(*updates.borrow_and_update()));
                    }
                },
            }
        }
    }

    /// Sends the content of a complete file to the client.
    async fn send_content(&self, id: &FileId, events: &Events) -> Result<(), Failure> {
        let file = self.services.library.open_file(id).await?;
        let file = file.ok_or_else(|| Failure::failed(format!("{id} was removed during the download")))?;
        for piece in file.layout().pieces() {
            let content = file.read_piece(piece).await?;
            for data in content.chunks(CONTENT_BYTES) {
                events.send(Event::Content { data: STANDARD.encode(data) }).await;
            }
        }
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

    /// Looks up `NAME`, `ID`, or with `/PATH` a part of a directory.
    async fn find_part(&self, query: &str, events: &Events) -> Result<Wanted, Failure> {
        let (query, part) = query.split_once('/').unwrap_or((query, ""));
        let part = match part.trim_end_matches('/') {
            "" => None,
            part => Some(part.parse().map_err(Failure::usage)?),
        };
        let Found { id, name, mut kind, size, warning } =
            find(&self.services.library, &self.trackers, query).await?;
        if let Some(warning) = warning {
            events.warn(warning).await;
        }
        if part.is_some() {
            kind = FileKind::Collection;
        }
        Ok(Wanted { id, name, kind, size, part })
    }
}

/// Returns the path of a file or directory that is written to `path`, or with `into` under its name into the directory `path`,
/// which is created if necessary.
pub(super) async fn output_path(
    path: &Path,
    into: bool,
    name: &Name,
    kind: FileKind,
) -> Result<PathBuf, Failure> {
    if into {
        let failed = || format!("cannot create the directory {}", path.display());
        let dir = path.to_owned();
        crate::blocking(move || Ok(create_dir(&dir, 0o777)?)).await.context(failed())?;
    }
    // An existing directory at the path of a directory is the same one: another `get` resumes or updates it.
    let is_inside = into
        || kind != FileKind::Collection && tokio::fs::metadata(path).await.is_ok_and(|found| found.is_dir());
    Ok(if is_inside { path.join(name.as_str()) } else { path.to_owned() })
}

fn directory_event(name: Name, summary: &Summary) -> Event {
    Event::Directory {
        name,
        files: summary.files,
        bytes: summary.bytes,
        hidden: summary.hidden,
        first_hidden: summary.first_hidden.iter().map(ToString::to_string).collect(),
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
    fn message(
        &mut self,
        name: &Name,
        progress: Progress,
        reason: impl FnOnce() -> String,
    ) -> Option<String> {
        if progress.phase == Phase::DiskFull {
            self.resumed = None;
            return (!std::mem::replace(&mut self.is_full, true)).then(|| {
                format!(
                    "disk full: {}; the download of {name} waits at {} of {} bytes and resumes when there is free space",
                    reason(),
                    progress.done,
                    progress.total
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

fn progress_event(progress: Progress) -> Event {
    Event::Progress { done: progress.done, total: progress.total, providers: progress.providers }
}
