//! A list of the files of several catalogues. Pages are fetched on demand and merged by name.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use super::client::TrackerClient;
use super::error::{TrackerError, UnreachableTracker};
use super::trackers::{CatalogueGroup, Trackers};
use enjambre_core::protocol::message::MAX_LIST;
use enjambre_core::{FileRecord, Name};

/// The maximum number of empty pages in a row. A tracker examines thousands of names for a page.
const MAX_EMPTY_PAGES: usize = 2_000;
/// The maximum number of pages. A page has about a hundred files or more, unless it is short because files have many
/// providers.
const MAX_PAGES: usize = 1_000_000;
/// The time limit for the next page with files, so that one tracker does not delay the lists of the others for long.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Source {
    group: CatalogueGroup,
    page: VecDeque<FileRecord>,
    cursor: Option<Vec<u8>>,
    done: bool,
    /// Why the list is incomplete.
    failure: Option<TrackerError>,
    /// The number of pages so far, and of empty pages since the last file.
    pages: usize,
    empty_pages: usize,
    last: Option<Position>,
}

/// The position of a file in a list.
type Position = (Name, Reverse<u64>);

fn position(file: &FileRecord) -> Position {
    (file.name.clone(), Reverse(file.version))
}

/// A list in progress. It buffers at most one page of each catalogue.
#[derive(Debug)]
pub struct Listing {
    trackers: Arc<Trackers>,
    pattern: String,
    sources: Option<Vec<Source>>,
}

impl Trackers {
    /// Lists the files of all catalogues that match the pattern, in the order of their names.
    pub fn list(self: &Arc<Self>, pattern: &str) -> Listing {
        let pattern = pattern.to_owned();
        Listing { trackers: Arc::clone(self), pattern, sources: None }
    }
}

impl Listing {
    /// Returns the next file, or `None` at the end. The order is by name, newest version first. A file with the same name in
    /// several catalogues is returned once. The list continues without trackers that fail, with a warning.
    ///
    /// # Errors
    /// If no tracker is reachable, or at the end of the files if the lists of all catalogues failed.
    pub async fn next(&mut self) -> Result<Option<FileRecord>, TrackerError> {
        if self.sources.is_none() {
            let (groups, reasons) = self.trackers.groups(true).await;
            if groups.is_empty() {
                return Err(TrackerError::Unreachable { reasons });
            }
            for UnreachableTracker { reason, .. } in reasons {
                tracing::warn!(%reason, "tracker skipped");
            }
            self.sources = Some(groups.into_iter().map(Source::new).collect());
        }
        let sources = self.sources.as_deref_mut().unwrap_or_default();
        join_all(sources.iter_mut().map(|source| source.fill(&self.pattern))).await;
        let key = |file: &FileRecord| (position(file), file.id);
        let first =
            sources.iter().enumerate().filter_map(|(at, source)| Some((key(source.page.front()?), at)));
        let Some((_, at)) = first.min() else { return end_of_list(sources) };
        let Some(mut file) = sources[at].page.pop_front() else { return Ok(None) };
        for source in sources {
            while source.page.front().is_some_and(|other| other.name == file.name && other.id == file.id) {
                let same = source.page.pop_front();
                file.providers = file.providers.max(same.map_or(0, |same| same.providers));
            }
        }
        Ok(Some(file))
    }
}

/// Reports the catalogues whose lists failed: as warnings, or as an error if there is no complete list.
fn end_of_list(sources: &mut [Source]) -> Result<Option<FileRecord>, TrackerError> {
    let is_any_complete = sources.iter().any(|source| source.failure.is_none());
    let mut failures: Vec<_> = sources.iter_mut().filter_map(|source| source.failure.take()).collect();
    let failure = if is_any_complete { None } else { failures.pop() };
    for error in failures {
        tracing::warn!(%error, "list of a catalogue incomplete");
    }
    failure.map_or(Ok(None), Err)
}

impl Source {
    fn new(group: CatalogueGroup) -> Self {
        let (page, failure) = (VecDeque::new(), None);
        Self { group, page, cursor: None, done: false, failure, pages: 0, empty_pages: 0, last: None }
    }

    /// Requests pages until one has files. The list ends with a failure.
    async fn fill(&mut self, pattern: &str) {
        let filled = timeout(FILL_TIMEOUT, self.try_fill(pattern)).await;
        if let Err(failure) = filled.unwrap_or_else(|_| Err(self.violation("no file in time"))) {
            self.done = true;
            self.failure = Some(failure);
        }
    }

    /// A faulty tracker could otherwise send files or empty pages for ever.
    async fn try_fill(&mut self, pattern: &str) -> Result<(), TrackerError> {
        while self.page.is_empty() && !self.done {
            let cursor = &self.cursor;
            let limit = u32::try_from(MAX_LIST).unwrap_or(u32::MAX);
            // Cursors are valid at all trackers of a catalogue.
            let request =
                |client: Arc<TrackerClient>| async move { client.list(pattern, cursor.clone(), limit).await };
            let (files, next) = self.group.request(request).await?;
            self.pages += 1;
            self.empty_pages = if files.is_empty() { self.empty_pages + 1 } else { 0 };
            if self.pages > MAX_PAGES || self.empty_pages > MAX_EMPTY_PAGES {
                return Err(self.violation("the list does not end"));
            }
            for file in &files {
                let last = self.last.replace(position(file));
                if last >= self.last {
                    return Err(self.violation("the list is not in order"));
                }
            }
            self.done = next.is_none() || next == self.cursor;
            self.page = files.into();
            self.cursor = next;
        }
        Ok(())
    }

    fn violation(&self, problem: &'static str) -> TrackerError {
        // Any tracker of the catalogue may have sent the page.
        let endpoint = self.group.clients[0].endpoint().clone();
        TrackerError::Protocol { endpoint, problem }
    }
}
