//! Download of the members of a collection whose list is in the library.
//!
//! Members that are already stored are handled first. Small members are fetched in batches. The others, and those that the
//! batches did not fetch, are downloaded like any other file, a few dozen in parallel, from the providers of the
//! collection.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::context::retry_storage;
use super::downloader::Downloader;
use super::error::DownloadError;
use super::provider::ProviderSource;
use super::request::{DownloadRequest, Phase, Progress};
use super::small_files::{self, SmallMember};
use crate::library::entry::{Location, NewFile};
use crate::library::error::LibraryError;
use crate::library::library::Library;
use crate::library::output::Destination;
use crate::library::small::{MAX_SMALL, SmallCopy, SmallOutput};
use enjambre_core::{Collection, FileId, FileKind, Member, MemberPath, Provider};

const MAX_PARALLEL: usize = 32;
/// How long members share the result of a provider lookup.
const LOOKUP_VALIDITY: Duration = Duration::from_secs(2);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// A provider lookup that many members share.
struct SharedLookup {
    inner: Arc<dyn ProviderSource>,
    latest: tokio::sync::Mutex<Option<(Instant, Vec<Provider>)>>,
}

#[async_trait]
impl ProviderSource for SharedLookup {
    async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, String> {
        // Locked during the lookup on purpose: other members wait for the same result.
        let mut latest = self.latest.lock().await;
        if let Some((time, providers)) = &*latest
            && time.elapsed() < LOOKUP_VALIDITY
        {
            return Ok(providers.clone());
        }
        let providers = self.inner.providers(id).await?;
        *latest = Some((Instant::now(), providers.clone()));
        Ok(providers)
    }
}

/// Downloads these members of the collection `id` into the library or to `output`. Returns their total bytes.
pub(super) async fn get_members(
    downloader: &Downloader,
    id: FileId,
    collection: &Collection,
    output: Option<&SmallOutput>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<u64, Arc<DownloadError>> {
    let library = downloader.library();
    let providers: Arc<dyn ProviderSource> =
        Arc::new(SharedLookup { inner: providers, latest: Default::default() });
    let total = collection.total_size();
    let mut members_of: HashMap<FileId, Vec<&Member>> = HashMap::new();
    for member in collection.members() {
        members_of.entry(member.id).or_default().push(member);
    }
    let attempt = || place_stored_members(downloader, id, &members_of, output);
    let placed = retry_storage(&downloader.context, progress, attempt).await?;
    let mut done: u64 = placed.iter().map(|id| bytes_of(&members_of[id])).sum();
    // In the order of paths, so that members of the same directory are fetched together.
    let (mut waiting, mut small) = (VecDeque::new(), Vec::new());
    for member in collection.members() {
        let entries = &members_of[&member.id];
        if placed.contains(&member.id) || !std::ptr::eq(entries[0], member) {
            continue;
        }
        // Incomplete members are resumed as single downloads.
        if member.size <= MAX_SMALL && library.entry(&member.id).is_none() {
            small.push(SmallMember::new(member.id, member.size, paths_of(entries)));
        } else {
            waiting.push_back(entries);
        }
    }
    let (small_progress, small_updates) = watch::channel(Progress::default());
    let lookup = Arc::clone(&providers);
    let batches =
        small_files::fetch(&downloader.context, id, small, output.cloned(), lookup, &small_progress);
    let batches = downloader.shutdown.run_until_cancelled(batches);
    tokio::pin!(batches);
    let mut batches_running = true;
    // The progress of the members being downloaded.
    let active: Mutex<HashMap<FileId, watch::Receiver<Progress>>> = Mutex::default();
    let mut downloads = FuturesUnordered::new();
    loop {
        while downloads.len() < MAX_PARALLEL
            && let Some(entries) = waiting.pop_front()
        {
            downloads.push(get_member(downloader, id, entries, output, Arc::clone(&providers), &active));
        }
        tokio::select! {
            biased;
            remaining = &mut batches, if batches_running => {
                batches_running = false;
                done += small_updates.borrow().done;
                small_progress.send_replace(Progress::default());
                let remaining = remaining.ok_or_else(|| Arc::new(DownloadError::Cancelled))?.map_err(Arc::new)?;
                waiting.extend(remaining.iter().map(|small| &members_of[&small.id]));
            }
            Some(finished) = downloads.next() => done += finished?,
            () = tokio::time::sleep(PROGRESS_INTERVAL), if batches_running || !downloads.is_empty() => {}
            else => break,
        }
        let mut sum = Progress { done, total, ..Progress::default() };
        let active = active.lock();
        for member in active.values().chain(batches_running.then_some(&small_updates)) {
            let member = *member.borrow();
            sum.done += member.done;
            sum.providers = sum.providers.max(member.providers);
            sum.phase = match (sum.phase, member.phase) {
                (Phase::DiskFull, _) | (_, Phase::DiskFull) => Phase::DiskFull,
                (Phase::Fetching, _) | (_, Phase::Fetching) => Phase::Fetching,
                _ => Phase::Searching,
            };
        }
        drop(active);
        progress.send_replace(sum);
    }
    if let Some(SmallOutput { dir, .. }) = output {
        let create = || dir.create_directories(collection);
        retry_storage(&downloader.context, progress, create).await?;
    }
    Ok(total)
}

/// Assigns stored members to the collection and copies small ones to the output. Returns the members that are at their
/// destination.
async fn place_stored_members(
    downloader: &Downloader,
    collection: FileId,
    members: &HashMap<FileId, Vec<&Member>>,
    output: Option<&SmallOutput>,
) -> Result<HashSet<FileId>, LibraryError> {
    let library = downloader.library();
    let known = members.keys().filter(|id| library.entry(id).is_some_and(|entry| entry.is_complete()));
    let known: Vec<FileId> = known.copied().collect();
    if known.is_empty() {
        return Ok(HashSet::new());
    }
    let Some(output) = output else {
        return library
            .adopt_members(collection, known.into_iter().map(|id| (id, Vec::new())).collect())
            .await;
    };
    let path = |member: &&Member| output.dir.root().join(member.path.as_str());
    let at_paths = known.iter().map(|id| (*id, members[id].iter().map(path).collect()));
    let mut placed = library.adopt_members(collection, at_paths.collect()).await?;
    let unplaced = known.iter().filter(|id| !placed.contains(*id) && members[*id][0].size <= MAX_SMALL);
    let stored = library.adopt_members(collection, unplaced.map(|id| (*id, Vec::new())).collect()).await?;
    let copies = stored.iter().map(|id| SmallCopy {
        id: *id,
        size: members[id][0].size,
        paths: paths_of(&members[id]),
    });
    let remaining: HashSet<FileId> =
        library.export_small(copies.collect(), output).await?.into_iter().collect();
    placed.extend(stored.into_iter().filter(|id| !remaining.contains(id)));
    Ok(placed)
}

fn paths_of(entries: &[&Member]) -> Vec<(MemberPath, bool)> {
    entries.iter().map(|member| (member.path.clone(), member.executable)).collect()
}

/// Returns the total bytes of a file, counted once for each path.
fn bytes_of(entries: &[&Member]) -> u64 {
    entries.iter().map(|member| member.size).sum()
}

/// Returns whether the content of the file is stored at this path.
pub(super) fn is_linked(library: &Library, id: &FileId, path: PathBuf) -> bool {
    library.entry(id).is_some_and(|entry| entry.location == Location::Linked { path })
}

/// Downloads one file to all of its paths in the collection. Returns its bytes, counted once for each path.
async fn get_member(
    downloader: &Downloader,
    collection: FileId,
    entries: &[&Member],
    output: Option<&SmallOutput>,
    providers: Arc<dyn ProviderSource>,
    active: &Mutex<HashMap<FileId, watch::Receiver<Progress>>>,
) -> Result<u64, Arc<DownloadError>> {
    let Some(first) = entries.first() else { return Ok(0) };
    let destination = match output {
        None => Destination::Library,
        Some(SmallOutput { dir, force }) => Destination::Member {
            dir: Arc::clone(dir),
            path: first.path.clone(),
            executable: first.executable,
            force: *force,
        },
    };
    let download = downloader.get(DownloadRequest {
        id: first.id,
        file: NewFile { name: None, kind: FileKind::File, member_of: Some(collection) },
        claimed_size: first.size,
        accepted_sizes: first.size..=first.size,
        destination,
        announced_as: collection,
        providers,
    });
    active.lock().insert(first.id, download.progress());
    let (copy_progress, copy_updates) = watch::channel(Progress::default());
    let result = async {
        download.wait().await?;
        let Some(SmallOutput { dir, force }) = output else { return Ok(()) };
        active.lock().insert(first.id, copy_updates);
        let library = downloader.library();
        for member in entries {
            let path = dir.root().join(member.path.as_str());
            if !is_linked(library, &member.id, path) {
                let export =
                    || library.export_member(&member.id, dir, &member.path, member.executable, *force);
                retry_storage(&downloader.context, &copy_progress, export).await?;
            }
        }
        Ok(())
    };
    let result: Result<(), Arc<DownloadError>> = result.await;
    active.lock().remove(&first.id);
    result?;
    Ok(bytes_of(entries))
}
