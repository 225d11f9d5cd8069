//! Executes the commands of the command line on a node.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use enjambre_control::{
    Command, Event, Events, Execute, Exported, Failure, Input, LibraryLine, NodeStatus, Output, Published,
    Removed, ResultContext, TrackerLine, WithdrawnLine,
};
use enjambre_core::{Collection, FileId, FileKind, Name, Publication};
use enjambre_swarm::library::entry::{Entry, Location};
use enjambre_swarm::library::library::Library;
use enjambre_swarm::library::publish::{
    PublishOptions, PublishProgress, Published as LibraryPublished, Skipped,
};
use enjambre_swarm::tracker_client::error::TrackerError;
use enjambre_swarm::tracker_client::presence::{Presence, TrackerState};

use super::get::{GetOptions, output_path};
use super::{Node, Reach};
use crate::display::count;
use crate::find::default_name;
use crate::spool;

#[async_trait]
impl Execute for Node {
    async fn execute(&self, command: Command, input: Input, events: Events) -> Result<(), Failure> {
        match command {
            Command::Publish { paths, name, store, pin, strict, exclude } => {
                let secret = Some(self.secret());
                let options = PublishOptions { name, store, secret, strict, exclude };
                let mut results = Results::default();
                for path in paths {
                    let published = self.publish(&path, options.clone(), pin, &events).await;
                    results.add(published, &events).await;
                }
                results.failed.map_or(Ok(()), Err)
            }
            Command::PublishInput { name, size, pin } => {
                self.presence()?;
                let (folder, copy_dir) = (&self.folder, self.services.copy_dir.as_deref());
                let (spool, manifest) = spool::write(folder, copy_dir, &name, size, input, &events).await?;
                let (action, secret) = (format!("cannot publish {name}"), Some(self.secret()));
                let library = &self.services.library;
                let published = library.publish_temporary(spool.path(), manifest, name, secret).await;
                drop(spool);
                self.announce(published.context(action)?, pin, &events).await
            }
            Command::Get { queries, output, force, sync } => {
                let options = GetOptions { output: &output, force, sync };
                let mut results = Results::default();
                for query in queries {
                    results.add(self.get(&query, options, &events).await, &events).await;
                    // The next file would continue the incomplete content of this one.
                    if results.failed.is_some() && output == Output::Client {
                        break;
                    }
                }
                results.failed.map_or(Ok(()), Err)
            }
            Command::Contents { query } => self.contents(&query, &events).await,
            Command::Downloads => {
                events.send(self.downloads()).await;
                Ok(())
            }
            Command::Download { query } => self.show_download(&query, &events).await,
            Command::StartDownload { query } => self.start_download(&query, &events).await,
            Command::PauseDownload { query } => self.pause_download(&query, &events).await,
            Command::ResumeDownload { query } => self.resume_download(&query, &events).await,
            Command::CancelDownload { query, keep } => self.cancel_download(&query, keep).await,
            Command::MoveDownload { query, position } => self.move_download(&query, position, &events).await,
            Command::Library => self.list(&events).await,
            Command::Export { query, output, force } => self.export(&query, output, force, &events).await,
            Command::Remove { query } => {
                let library = &self.services.library;
                let entry = library.find(&query)?;
                let by_name = entry.names.iter().find(|name| name.as_str() == query);
                let left = match by_name {
                    Some(name) => library.remove_name(&entry.id, name).await?,
                    None => library.remove(&entry.id).await.map(|()| None)?,
                };
                let name = by_name.cloned().or(entry.name);
                events.send(Event::Removed(Removed { name, id: entry.id, left })).await;
                Ok(())
            }
            Command::Watch => {
                self.watch(&events).await;
                Ok(())
            }
            Command::Search { pattern, cursor, limit } => {
                self.search(&pattern, cursor.as_deref(), limit, &events).await
            }
            Command::File { query } => self.file(&query, &events).await,
            Command::Limits => {
                events.send(Event::Limits(self.services.limits())).await;
                Ok(())
            }
            Command::SetLimits(limits) => {
                self.services.set_limits(limits);
                events.send(Event::Limits(limits)).await;
                Ok(())
            }
            Command::Pins => self.pins(&events).await,
            Command::Pin { query } => self.request_pin(&query, &events).await,
            Command::Unpin { query } => self.unpin(&query, &events).await,
            Command::Verify { query } => self.verify(query.as_deref(), &events).await,
            Command::Status => {
                events.send(Event::Status(self.status().await?)).await;
                Ok(())
            }
            _ => Err(Failure::usage("command not supported by a peer; use the configuration of a tracker")),
        }
    }
}

/// The results of a command for several files, which continues after a failure.
#[derive(Default)]
struct Results {
    /// The last failure.
    failed: Option<Failure>,
}

impl Results {
    /// Adds a result. Reports the failure before it.
    async fn add(&mut self, result: Result<(), Failure>, events: &Events) {
        if let Err(failure) = result
            && let Some(earlier) = self.failed.replace(failure)
        {
            events.warn(earlier.message).await;
        }
    }
}

impl Node {
    pub(super) fn presence(&self) -> Result<&Presence, Failure> {
        self.presence.as_deref().ok_or_else(|| {
            Failure::failed(
                "the library is in use by a command that does not participate in the swarm; try again",
            )
        })
    }

    /// The secret of [`PublishOptions`].
    fn secret(&self) -> FileId {
        FileId::from_bytes(blake3::hash(&self.key.secret()).into())
    }

    /// Adds a file or directory to the library and the catalogue.
    async fn publish(
        &self,
        path: &Path,
        options: PublishOptions,
        pin: bool,
        events: &Events,
    ) -> Result<(), Failure> {
        self.presence()?;
        let (shown, sink) = (path.to_owned(), events.clone());
        let progress = move |PublishProgress { done, total, .. }: PublishProgress| {
            sink.progress(Event::Hashing { path: shown.clone(), done, total });
        };
        let published = self.services.library.publish(path, options, progress).await;
        let published = published.context(format!("cannot publish {}", path.display()))?;
        let Skipped { links, others, reasons } = &published.skipped;
        if *links > 0 {
            let links = count(*links, "symbolic link");
            events.warn(format!("{}: skipped {links}", path.display())).await;
        }
        if *others > 0 {
            let more = if *others > reasons.len() as u64 { "; ..." } else { "" };
            let (others, reasons) = (count(*others, "entry"), reasons.join("; "));
            events.warn(format!("{}: skipped {others}: {reasons}{more}", path.display())).await;
        }
        self.announce(published, pin, events).await
    }

    /// Adds a file or directory of the library, which is in the outbox, to the catalogue.
    async fn announce(&self, published: LibraryPublished, pin: bool, events: &Events) -> Result<(), Failure> {
        let presence = self.presence()?;
        // For a directory the publication contains the size of the encoded collection, not that of its files.
        let entry = self.services.library.entry(&published.id).ok_or_else(|| {
            Failure::failed(format!("{} was removed during the publication", published.name))
        })?;
        let (name, size) = (published.name, published.size);
        let publication = Publication { name, id: entry.id, size: entry.size, kind: entry.kind };
        let acknowledged = presence.publish(&publication).await;
        let outcome = match &acknowledged {
            Err(TrackerError::Unreachable { .. }) => {
                "; a running peer publishes it when a tracker is reachable"
            }
            _ => {
                ", but trackers refused the publication; a running peer repeats it at intervals, unless the file is \
                 removed with `enjambre remove`"
            }
        };
        let acknowledged =
            acknowledged.context(format!("{} is in the library{outcome}", publication.name))?;
        let published = Published {
            name: publication.name.clone(),
            id: publication.id,
            size,
            kind: publication.kind,
            version: acknowledged.version,
            new: acknowledged.new,
        };
        events.send(Event::Published(published)).await;
        for warning in presence.status().into_iter().filter_map(|tracker| tracker.warning) {
            events.warn(warning).await;
        }
        if pin { self.pin(&publication, size, events).await } else { Ok(()) }
    }

    async fn list(&self, events: &Events) -> Result<(), Failure> {
        let library = &self.services.library;
        for entry in self.entries().await? {
            let Some(name) = entry.name.clone() else { continue };
            let (content, path) = match &entry.location {
                Location::Database => ("database", None),
                Location::Files => ("files", None),
                Location::Linked { path } => ("linked", Some(shown_path(path))),
            };
            let mut line = LibraryLine {
                name,
                names: entry.names.iter().rev().cloned().collect(),
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
                let library = Arc::clone(library);
                let add = move || {
                    add_members(&mut line, &library, &collection);
                    Ok(line)
                };
                line = crate::blocking(add).await?;
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
        let into = output.as_os_str().as_encoded_bytes().ends_with(b"/");
        let path = match entry.name.clone().or_else(|| default_name(&entry.id)) {
            Some(name) => output_path(&output, into, &name, entry.kind).await?,
            None => output,
        };
        library.export(&entry.id, &path, force).await?;
        let bytes = match entry.kind {
            FileKind::File | FileKind::Executable => entry.size,
            FileKind::Collection => library.collection(&entry.id).await?.total_size(),
        };
        events.send(Event::Exported(Exported { id: entry.id, path, bytes })).await;
        Ok(())
    }

    pub(super) async fn status(&self) -> Result<NodeStatus, Failure> {
        let (library, presence) = (Arc::clone(&self.services.library), self.presence.clone());
        let count = move || {
            let refused = presence.map(|presence| presence.refused()).unwrap_or_default();
            Ok((library.totals(), count_refused(&library, &refused)))
        };
        let (totals, (refused_names, refused_files)) = crate::blocking(count).await?;
        let tracker = |state: TrackerState| TrackerLine {
            endpoint: state.endpoint,
            connected: state.connected,
            // The error of an earlier attempt does not apply to the session.
            problem: state.last_error.filter(|_| !state.connected).or(state.warning),
        };
        Ok(NodeStatus {
            peer: self.key.peer_id(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            daemon: self.reach == Reach::Daemon,
            listen: self.listen.clone(),
            files: totals.named,
            published: totals.published.saturating_sub(refused_files),
            refused_names,
            withdrawn: totals.withdrawn,
            withdrawn_files: totals.withdrawn_files.iter().filter_map(withdrawn_line).collect(),
            content_bytes: totals.bytes,
            sent_bytes: self.services.seeder.sent_bytes(),
            trackers: self
                .presence
                .as_ref()
                .map_or_else(Vec::new, |presence| presence.status().into_iter().map(tracker).collect()),
        })
    }

    /// Lists the files of the library.
    pub(super) async fn entries(&self) -> Result<Vec<Entry>, Failure> {
        let library = Arc::clone(&self.services.library);
        crate::blocking(move || Ok(library.entries())).await
    }
}

/// Adds the members of a directory to its line.
fn add_members(line: &mut LibraryLine, library: &Library, collection: &Collection) {
    if let Some(folder) = linked_folder(library, collection) {
        (line.content, line.path) = ("linked".to_owned(), Some(shown_path(&folder)));
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

/// Counts the refused names of the files in the library, and the files of which all names are refused.
fn count_refused(library: &Library, refused: &HashSet<(FileId, Name)>) -> (u64, u64) {
    let (mut names, mut files) = (0, 0);
    let ids: HashSet<FileId> = refused.iter().map(|(id, _)| *id).collect();
    for entry in ids.iter().filter_map(|id| library.entry(id)) {
        let count = entry.names.iter().filter(|name| refused.contains(&(entry.id, (*name).clone()))).count();
        names += count as u64;
        files += u64::from(count > 0 && count == entry.names.len());
    }
    (names, files)
}

/// Returns the directory of the user that contains the linked members of a collection. If these are in several directories,
/// returns the one that contains most of them.
fn linked_folder(library: &Library, collection: &Collection) -> Option<PathBuf> {
    let mut folders: BTreeMap<PathBuf, u32> = BTreeMap::new();
    for member in collection.members() {
        if let Some(Entry { location: Location::Linked { path }, .. }) = library.entry(&member.id)
            && let Some(folder) = folder_of(&path, Path::new(member.path.as_str()))
        {
            *folders.entry(folder.to_owned()).or_default() += 1;
        }
    }
    folders.into_iter().max_by_key(|(_, members)| *members).map(|(folder, _)| folder)
}

/// Returns the directory at `path` without what `path` and the path of a member have in common: of a directory that was
/// downloaded in part, the place of that part.
fn folder_of<'a>(path: &'a Path, member: &Path) -> Option<&'a Path> {
    let same = path.iter().rev().zip(member.iter().rev()).take_while(|(one, other)| one == other);
    // A file that was downloaded alone may have another name.
    path.ancestors().nth(same.count().max(1))
}

fn withdrawn_line(entry: &Entry) -> Option<WithdrawnLine> {
    let (Some(reason), Location::Linked { path }) = (entry.withdrawn, &entry.location) else { return None };
    Some(WithdrawnLine { name: entry.name.clone(), path: shown_path(path), reason })
}

/// Replaces what is not UTF-8, which JSON cannot represent.
fn shown_path(path: &Path) -> PathBuf {
    path.to_string_lossy().into_owned().into()
}

#[cfg(test)]
mod tests {
    use enjambre_core::Memory;
    use enjambre_swarm::library::content::ContentStore;

    use super::*;

    #[tokio::test]
    async fn file_without_names_is_not_counted_as_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("folder"), dir.path().join("folder/file"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&file, "content").unwrap();
        let memory = || Arc::new(Memory::new());
        let library = Library::open(memory(), ContentStore::Database(memory())).await.unwrap();
        library.publish(&folder, PublishOptions::default(), |_| {}).await.unwrap();
        let LibraryPublished { id, name, .. } =
            library.publish(&file, PublishOptions::default(), |_| {}).await.unwrap();
        let refused = HashSet::from([(id, name)]);
        assert_eq!(count_refused(&library, &refused), (1, 1));
        // It stays as a member of the directory.
        library.remove(&id).await.unwrap();
        assert!(library.entry(&id).is_some_and(|entry| entry.names.is_empty()));
        assert_eq!(count_refused(&library, &refused), (0, 0));
    }

    #[test]
    fn place_of_a_partial_directory_is_that_of_its_part() {
        for (path, member, folder) in [
            ("/out/a/b", "a/b", "/out"),
            ("/out/b", "a/b", "/out"),
            ("/out/c/d", "a/b/c/d", "/out"),
            ("/out/renamed", "a/b", "/out"),
        ] {
            assert_eq!(folder_of(Path::new(path), Path::new(member)), Some(Path::new(folder)), "{path}");
        }
    }
}
