//! Gets the members of a collection whose list is in the library.
//!
//! Members are files like any other, fetched by their own ids from whoever provides the collection; a few dozen
//! at a time, so that small ones do not wait for each other's round trips.

use std::collections::HashMap;
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
use super::progress::{Phase, Progress};
use super::source::ProviderSource;
use super::wanted::Wanted;
use crate::library::entry::Location;
use crate::library::output::{Destination, OutputDir};
use crate::model::collection::Member;
use crate::model::id::FileId;
use crate::model::record::{FileKind, Provider};

/// Members that are fetched at the same time.
const AT_ONCE: usize = 32;
/// How old an answer of the trackers may be that members share.
const FRESH: Duration = Duration::from_secs(2);
/// How often the progress is summed up.
const TICK: Duration = Duration::from_millis(200);

/// The folder that the members are written to.
#[derive(Debug, Clone)]
pub struct Output {
    /// The folder.
    pub dir: Arc<OutputDir>,
    /// Replace what is there.
    pub force: bool,
}

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
    output: Option<&Output>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<u64, Arc<DownloadError>> {
    let collection = downloader.library().collection(&id).await.map_err(|error| Arc::new(error.into()))?;
    let providers: Arc<dyn ProviderSource> =
        Arc::new(Shared { inner: providers, latest: Default::default() });
    let total = collection.total_size();
    let mut members_of: HashMap<FileId, Vec<&Member>> = HashMap::new();
    for member in collection.members() {
        members_of.entry(member.id).or_default().push(member);
    }
    // The progress of the members under way.
    let active: Mutex<HashMap<FileId, watch::Receiver<Progress>>> = Mutex::default();
    let mut waiting = members_of.values();
    let mut at_work = FuturesUnordered::new();
    let mut done = 0;
    loop {
        while at_work.len() < AT_ONCE
            && let Some(same) = waiting.next()
        {
            at_work.push(get_member(downloader, id, same, output, Arc::clone(&providers), &active));
        }
        tokio::select! {
            finished = at_work.next() => match finished {
                None => break,
                Some(result) => done += result?,
            },
            () = tokio::time::sleep(TICK) => {}
        }
        let mut sum = Progress { done, total, ..Progress::default() };
        for member in active.lock().values() {
            let member = *member.borrow();
            sum.done += member.done;
            sum.sources = sum.sources.max(member.sources);
            sum.phase = match (sum.phase, member.phase) {
                (Phase::DiskFull, _) | (_, Phase::DiskFull) => Phase::DiskFull,
                (Phase::Fetching, _) | (_, Phase::Fetching) => Phase::Fetching,
                _ => Phase::Searching,
            };
        }
        progress.send_replace(sum);
    }
    Ok(total)
}

/// Gets one file that stands at one or more paths of the collection; returns its bytes, counted for each path.
async fn get_member(
    downloader: &Downloader,
    collection: FileId,
    same: &[&Member],
    output: Option<&Output>,
    providers: Arc<dyn ProviderSource>,
    active: &Mutex<HashMap<FileId, watch::Receiver<Progress>>>,
) -> Result<u64, Arc<DownloadError>> {
    let Some(first) = same.first() else { return Ok(0) };
    let destination = match output {
        None => Destination::Library,
        Some(Output { dir, force }) => Destination::Member {
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
    let result = download.wait().await;
    active.lock().remove(&first.id);
    result?;
    if let Some(Output { dir, force }) = output {
        let library = downloader.library();
        for member in same {
            let path = dir.root().join(member.path.as_str());
            let is_there = matches!(library.entry(&member.id), Some(entry)
                if entry.location == Location::Linked { path: path.clone() });
            if !is_there {
                library
                    .export_member(&member.id, dir, &member.path, member.executable, *force)
                    .await
                    .map_err(|error| Arc::new(error.into()))?;
            }
        }
    }
    Ok(first.size * same.len() as u64)
}
