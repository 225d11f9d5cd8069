//! A list of the files of several catalogues. Pages are fetched on demand and merged by name. A [`ListCursor`] continues it
//! later.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::time::timeout;

use super::client::TrackerClient;
use super::error::{TrackerError, UnreachableTracker};
use super::trackers::{CatalogueGroup, Trackers};
use enjambre_core::model::cbor;
use enjambre_core::protocol::message::MAX_LIST;
use enjambre_core::{CatalogueId, FileId, FileRecord, Name};

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
    /// The cursor of `page`, and that of the next page.
    start: Option<Vec<u8>>,
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

/// The position of a file in a merged list.
type MergedPosition = (Position, FileId);

fn merged_position(file: &FileRecord) -> MergedPosition {
    (position(file), file.id)
}

/// The place at which a list continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListCursor {
    /// The last returned file, if there is one.
    last: Option<MergedPosition>,
    catalogues: Vec<(CatalogueId, NextPage)>,
}

/// The next page of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum NextPage {
    First,
    At(ByteBuf),
    End,
}

/// An invalid text of a [`ListCursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor; use the one of the previous page")]
pub struct InvalidCursor;

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).map_err(|_| fmt::Error)?;
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for ListCursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidCursor)?;
        cbor::decode(&mut &bytes[..], 16).map_err(|_| InvalidCursor)
    }
}

/// A list in progress. It buffers at most one page of each catalogue.
#[derive(Debug)]
pub struct Listing {
    trackers: Arc<Trackers>,
    pattern: String,
    page_size: usize,
    begin: Option<ListCursor>,
    last: Option<MergedPosition>,
    sources: Option<Vec<Source>>,
}

impl Trackers {
    /// Lists the files of all catalogues that match the pattern, in the order of their names.
    pub fn list(self: &Arc<Self>, pattern: &str) -> Listing {
        self.list_from(pattern, None, MAX_LIST)
    }

    /// As [`Trackers::list`], from a cursor of a list with the same pattern. Requests at most `page_size` files at a time.
    pub fn list_from(
        self: &Arc<Self>,
        pattern: &str,
        begin: Option<ListCursor>,
        page_size: usize,
    ) -> Listing {
        let (trackers, pattern) = (Arc::clone(self), pattern.to_owned());
        let last = begin.as_ref().and_then(|cursor| cursor.last.clone());
        Listing { trackers, pattern, page_size, begin, last, sources: None }
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
            let known = self.begin.take().map_or_else(Vec::new, |cursor| cursor.catalogues);
            let source = |group: CatalogueGroup| {
                let next = known.iter().find(|(catalogue, _)| *catalogue == group.catalogue);
                Source::new(group, next.map_or(NextPage::First, |(_, next)| next.clone()))
            };
            self.sources = Some(groups.into_iter().map(source).collect());
        }
        let sources = self.sources.as_deref_mut().unwrap_or_default();
        let fill = |source| Source::fill(source, &self.pattern, self.page_size, self.last.as_ref());
        join_all(sources.iter_mut().map(fill)).await;
        let front = |source: &Source| source.page.front().map(merged_position);
        let first = sources.iter().enumerate().filter_map(|(at, source)| Some((front(source)?, at)));
        let Some((_, at)) = first.min() else { return end_of_list(sources) };
        let Some(mut file) = sources[at].page.pop_front() else { return Ok(None) };
        for source in sources {
            while source.page.front().is_some_and(|other| other.name == file.name && other.id == file.id) {
                let same = source.page.pop_front();
                file.providers = file.providers.max(same.map_or(0, |same| same.providers));
            }
        }
        self.last = Some(merged_position(&file));
        Ok(Some(file))
    }

    /// Returns the place behind the last returned file, or `None` at the end of the list. Call it after [`Listing::next`], which
    /// can be cancelled.
    pub fn cursor(&self) -> Option<ListCursor> {
        let sources = self.sources.as_ref()?;
        let catalogues: Vec<_> =
            sources.iter().map(|source| (source.group.catalogue, source.next_page())).collect();
        // A failed catalogue is requested again only as long as others continue.
        let is_complete = sources.iter().any(|source| source.failure.is_none());
        let is_end = is_complete && sources.iter().all(|source| source.page.is_empty() && source.done);
        (!is_end).then(|| ListCursor { last: self.last.clone(), catalogues })
    }
}

/// Reports the catalogues whose lists failed: as warnings, or as an error if there is no complete list.
fn end_of_list(sources: &[Source]) -> Result<Option<FileRecord>, TrackerError> {
    let is_any_complete = sources.iter().any(|source| source.failure.is_none());
    let mut failures: Vec<_> = sources.iter().filter_map(|source| source.failure.clone()).collect();
    let failure = if is_any_complete { None } else { failures.pop() };
    for error in failures {
        tracing::warn!(%error, "list of a catalogue incomplete");
    }
    failure.map_or(Ok(None), Err)
}

impl Source {
    fn new(group: CatalogueGroup, next: NextPage) -> Self {
        let (page, failure) = (VecDeque::new(), None);
        let (cursor, done) = match next {
            NextPage::First => (None, false),
            NextPage::At(cursor) => (Some(cursor.into_vec()), false),
            NextPage::End => (None, true),
        };
        let start = cursor.clone();
        Self { group, page, start, cursor, done, failure, pages: 0, empty_pages: 0, last: None }
    }

    /// The page with the next file. After a failure it is requested again.
    fn next_page(&self) -> NextPage {
        let page = if self.page.is_empty() { &self.cursor } else { &self.start };
        match page {
            _ if self.page.is_empty() && self.done && self.failure.is_none() => NextPage::End,
            None => NextPage::First,
            Some(cursor) => NextPage::At(ByteBuf::from(cursor.clone())),
        }
    }

    /// Requests pages until one has files behind `after`. The list ends with a failure.
    async fn fill(&mut self, pattern: &str, page_size: usize, after: Option<&MergedPosition>) {
        let filled = timeout(FILL_TIMEOUT, self.try_fill(pattern, page_size, after)).await;
        if let Err(failure) = filled.unwrap_or_else(|_| Err(self.violation("no file in time"))) {
            self.done = true;
            self.failure = Some(failure);
        }
    }

    /// A faulty tracker could otherwise send files or empty pages for ever.
    async fn try_fill(
        &mut self,
        pattern: &str,
        page_size: usize,
        after: Option<&MergedPosition>,
    ) -> Result<(), TrackerError> {
        while self.page.is_empty() && !self.done {
            let cursor = &self.cursor;
            let limit = u32::try_from(page_size).unwrap_or(u32::MAX);
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
            self.page = files.into_iter().filter(|file| Some(&merged_position(file)) > after).collect();
            self.start = std::mem::replace(&mut self.cursor, next);
        }
        Ok(())
    }

    fn violation(&self, problem: &'static str) -> TrackerError {
        // Any tracker of the catalogue may have sent the page.
        let endpoint = self.group.clients[0].endpoint().clone();
        TrackerError::Protocol { endpoint, problem }
    }
}
