//! Gets the members of a collection whose list is in the library.
//!
//! What is here already is settled first. Small members come in batches; the others, and what batches do not bring, are files like
//! any other, fetched by their own ids from whoever provides the collection, a few dozen at a time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::DownloadError;
use super::downloader::Downloader;
use super::hold::with_room;
use super::progress::{Phase, Progress};
use super::small::{self, Small};
use super::source::ProviderSource;
use super::wanted::Wanted;
use crate::library::entry::Location;
use crate::library::error::LibraryError;
use crate::library::output::Destination;
use crate::library::small::{MAX_SMALL, SmallOutput};
use crate::model::collection::{Member, MemberPath};
use crate::model::id::FileId;
use crate::model::record::{FileKind, Provider};

/// Members that are fetched at the same time.
const AT_ONCE: usize = 32;
/// How old an answer of the trackers may be that members share.
const FRESH: Duration = Duration::from_secs(2);
/// How often the progress is summed up.
const TICK: Duration = Duration::from_millis(200);

/// The providers of the collection, asked once for many members.
struct Shared {
    inner: Arc<dyn ProviderSource>,
    latest: tokio::sync::Mutex<Option<(Instant, Vec<Provider>)>>,
}

#[async_trait]
impl ProviderSource for Shared {
    async fn providers(&self, id: &FileId) -> Result<Vec<Provider>, String> {
        // Held while asking on purpose: the others wait for the same answer.
        let mut latest = self.latest.lock().await;
        if let Some((asked, providers)) = &*latest
            && asked.elapsed() < FRESH
        {
            return Ok(providers.clone());
        }
        let providers = self.inner.providers(id).await?;
        *latest = Some((Instant::now(), providers.clone()));
        Ok(providers)
    }
}

/// Gets every member of the collection `id`, whose list is in the library, into the library or to `output`.
/// Returns the bytes of all members together.
pub async fn get_members(
    downloader: &Downloader,
    id: FileId,
    output: Option<&SmallOutput>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<u64, Arc<DownloadError>> {
    let library = downloader.library();
    let collection = library.collection(&id).await.map_err(|error| Arc::new(error.into()))?;
    let providers: Arc<dyn ProviderSource> =
        Arc::new(Shared { inner: providers, latest: Default::default() });
    let total = collection.total_size();
    let mut members_of: HashMap<FileId, Vec<&Member>> = HashMap::new();
    for member in collection.members() {
        members_of.entry(member.id).or_default().push(member);
    }
    let failed = |error: LibraryError| Arc::new(DownloadError::from(error));
    let attempt = || settle(downloader, id, &members_of, output);
    let settled = with_room(&downloader.parts, progress, attempt).await.map_err(failed)?;
    let mut done: u64 = settled.iter().map(|id| bytes_of(&members_of[id])).sum();
    // In the order of their paths, so that neighbours come together.
    let (mut waiting, mut small) = (VecDeque::new(), Vec::new());
    for member in collection.members() {
        let same = &members_of[&member.id];
        if settled.contains(&member.id) || !std::ptr::eq(same[0], member) {
            continue;
        }
        // What is here in part is gone on with in the usual way.
        if member.size <= MAX_SMALL && library.entry(&member.id).is_none() {
            small.push(Small::new(member.id, member.size, paths_of(same)));
        } else {
            waiting.push_back(same);
        }
    }
    let (small_progress, small_seen) = watch::channel(Progress::default());
    let shared = Arc::clone(&providers);
    let batches = small::fetch(&downloader.parts, id, small, output.cloned(), shared, &small_progress);
    let batches = downloader.shutdown.run_until_cancelled(batches);
    tokio::pin!(batches);
    let mut in_batches = true;
    // The progress of the members under way.
    let active: Mutex<HashMap<FileId, watch::Receiver<Progress>>> = Mutex::default();
    let mut at_work = FuturesUnordered::new();
    loop {
        while at_work.len() < AT_ONCE
            && let Some(same) = waiting.pop_front()
        {
            at_work.push(get_member(downloader, id, same, output, Arc::clone(&providers), &active));
        }
        tokio::select! {
            biased;
            left = &mut batches, if in_batches => {
                in_batches = false;
                done += small_seen.borrow().done;
                small_progress.send_replace(Progress::default());
                let left = left.ok_or_else(|| Arc::new(DownloadError::Cancelled))?.map_err(Arc::new)?;
                waiting.extend(left.iter().map(|small| &members_of[&small.id]));
            }
            Some(finished) = at_work.next() => done += finished?,
            () = tokio::time::sleep(TICK), if in_batches || !at_work.is_empty() => {}
            else => break,
        }
        let mut sum = Progress { done, total, ..Progress::default() };
        let active = active.lock();
        for member in active.values().chain(in_batches.then_some(&small_seen)) {
            let member = *member.borrow();
            sum.done += member.done;
            sum.sources = sum.sources.max(member.sources);
            sum.phase = match (sum.phase, member.phase) {
                (Phase::DiskFull, _) | (_, Phase::DiskFull) => Phase::DiskFull,
                (Phase::Fetching, _) | (_, Phase::Fetching) => Phase::Fetching,
                _ => Phase::Searching,
            };
        }
        drop(active);
        progress.send_replace(sum);
    }
    Ok(total)
}

/// The members that are where they are wanted, small ones copied there where the library has them. They belong to
/// the collection from then on.
async fn settle(
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
        return library.settle(collection, known.into_iter().map(|id| (id, Vec::new())).collect()).await;
    };
    let path = |member: &&Member| output.dir.root().join(member.path.as_str());
    let at_paths = known.iter().map(|id| (*id, members[id].iter().map(path).collect()));
    let mut settled = library.settle(collection, at_paths.collect()).await?;
    let elsewhere = known.iter().filter(|id| !settled.contains(*id) && members[*id][0].size <= MAX_SMALL);
    let elsewhere = library.settle(collection, elsewhere.map(|id| (*id, Vec::new())).collect()).await?;
    let copies = elsewhere.iter().map(|id| (*id, members[id][0].size, paths_of(&members[id])));
    let left: HashSet<FileId> = library.export_small(copies.collect(), output).await?.into_iter().collect();
    settled.extend(elsewhere.into_iter().filter(|id| !left.contains(id)));
    Ok(settled)
}

fn paths_of(same: &[&Member]) -> Vec<(MemberPath, bool)> {
    same.iter().map(|member| (member.path.clone(), member.executable)).collect()
}

/// What a file counts for that stands at these paths.
fn bytes_of(same: &[&Member]) -> u64 {
    same.iter().map(|member| member.size).sum()
}

/// Gets one file that stands at one or more paths of the collection; returns its bytes, counted for each path.
async fn get_member(
    downloader: &Downloader,
    collection: FileId,
    same: &[&Member],
    output: Option<&SmallOutput>,
    providers: Arc<dyn ProviderSource>,
    active: &Mutex<HashMap<FileId, watch::Receiver<Progress>>>,
) -> Result<u64, Arc<DownloadError>> {
    let Some(first) = same.first() else { return Ok(0) };
    let destination = match output {
        None => Destination::Library,
        Some(SmallOutput { dir, force }) => Destination::Member {
            dir: Arc::clone(dir),
            path: first.path.clone(),
            executable: first.executable,
            force: *force,
        },
    };
    let download = downloader.get(Wanted {
        id: first.id,
        name: None,
        kind: FileKind::File,
        member_of: Some(collection),
        claimed_size: Some(first.size),
        proven_size: Some(first.size),
        destination,
        announced_as: collection,
        providers,
    });
    active.lock().insert(first.id, download.progress());
    let (copying, seen) = watch::channel(Progress::default());
    let got = async {
        download.wait().await?;
        let Some(SmallOutput { dir, force }) = output else { return Ok(()) };
        active.lock().insert(first.id, seen);
        let library = downloader.library();
        for member in same {
            let path = dir.root().join(member.path.as_str());
            let is_there = matches!(library.entry(&member.id), Some(entry)
                if entry.location == Location::Linked { path: path.clone() });
            if !is_there {
                let export =
                    || library.export_member(&member.id, dir, &member.path, member.executable, *force);
                let copied = with_room(&downloader.parts, &copying, export).await;
                copied.map_err(|error| Arc::new(DownloadError::from(error)))?;
            }
        }
        Ok(())
    };
    let got: Result<(), Arc<DownloadError>> = got.await;
    active.lock().remove(&first.id);
    got?;
    Ok(bytes_of(same))
}
