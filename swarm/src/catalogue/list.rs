//! Lists of names.

use std::net::IpAddr;
use std::ops::Bound;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::access::{PAGE, TURN_TIMEOUT};
use super::catalogue::{Catalogue, LIST_READS};
use super::error::CatalogueError;
use super::layout::{self, VERSIONS, VersionRecord};
use super::pattern::Pattern;
use super::peers::is_local;
use enjambre_core::model::name::MAX_NAME;
use enjambre_core::model::network::network_of;
use enjambre_core::{FileId, FileRecord, Key, KeyRange, Name, StorageError, UnixMillis};

/// The number of names that one page examines.
const MAX_EXAMINED: usize = 10_000;
/// The number of claims that one page counts, with those of one more file.
const MAX_CLAIMS: usize = 20_000;
/// The size of the records of one page in bytes, so that a reply stays below the limit of a header.
const MAX_PAGE_BYTES: usize = 48 * 1024;
/// The size of a record without its name: field names, two ids and the numbers at their largest.
const RECORD_BYTES: usize = 200;
/// The first byte of a cursor, its version. The last examined key follows.
const CURSOR: u8 = 1;

/// One page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// The files. May be empty before the end.
    pub files: Vec<FileRecord>,
    /// The start of the next page, or `None` at the end.
    pub cursor: Option<Vec<u8>>,
}

/// A matching version of a name.
struct Found {
    key: Bytes,
    name: Name,
    version: u64,
    record: VersionRecord,
}

/// The search for the matching names of one page.
struct Search {
    pattern: Pattern,
    range: KeyRange,
    limit: usize,
    found: Vec<Found>,
    /// The size of the records found.
    bytes: usize,
    examined: usize,
    /// The last examined key, or `None` at the end of the range.
    last: Option<Bytes>,
    done: bool,
}

impl Search {
    fn new(pattern: &str, cursor: Option<&[u8]>, limit: usize) -> Result<Self, CatalogueError> {
        let pattern = Pattern::new(pattern);
        let mut range = match &pattern {
            Pattern::Name(name) => KeyRange::prefix(&layout::versions_prefix(name)),
            pattern => KeyRange::prefix(pattern.prefix().as_bytes()),
        };
        if let Some(cursor) = cursor {
            let key = cursor.strip_prefix(&[CURSOR]).filter(|key| key.len() <= MAX_NAME + 9);
            let Some(key) = key.filter(|key| layout::read_version_key(key).is_ok()) else {
                return Err(CatalogueError::Malformed("invalid list cursor".to_owned()));
            };
            let begin = Bound::Excluded(Bytes::copy_from_slice(key));
            // A cursor of another pattern must not extend the range.
            if matches!(&range.start, Bound::Included(start) if key >= &start[..]) {
                range.start = begin;
            }
        }
        let found = Vec::new();
        Ok(Self { pattern, range, limit, found, bytes: 0, examined: 0, last: None, done: false })
    }

    /// Examines the next entries of the range.
    fn examine(&mut self, page: Vec<(Key, Bytes)>) -> Result<(), StorageError> {
        let Some((end, _)) = page.last() else {
            (self.last, self.done) = (None, true);
            return Ok(());
        };
        self.range = self.range.clone().after(end);
        for (key, raw) in page {
            let (name, version) = layout::read_version_key(key.as_bytes())?;
            let key = key.into_bytes();
            if self.pattern.matches(name.as_str()) {
                let size = name.as_str().len() + RECORD_BYTES;
                if self.found.len() == self.limit || self.bytes + size > MAX_PAGE_BYTES {
                    self.done = true;
                    return Ok(());
                }
                self.bytes += size;
                let record = layout::decode::<VersionRecord>(VERSIONS, &raw)?;
                self.found.push(Found { key: key.clone(), name, version, record });
            }
            self.examined += 1;
            self.last = Some(key);
        }
        self.done = self.examined >= MAX_EXAMINED || self.found.len() >= self.limit;
        Ok(())
    }
}

impl Catalogue {
    /// Returns one page of at most `limit` versions of matching names, sorted by the bytes of the name, newest version first.
    /// `known_count` may return the number of providers of a file, which then is not counted in the database.
    ///
    /// # Errors
    /// [`CatalogueError::Busy`] if there are too many other lists, especially of the same `requester`.
    pub async fn list(
        &self,
        pattern: &str,
        cursor: Option<&[u8]>,
        limit: usize,
        requester: Option<IpAddr>,
        now: UnixMillis,
        known_count: impl Fn(&FileId) -> Option<u32>,
    ) -> Result<ListPage, CatalogueError> {
        let mut search = Search::new(pattern, cursor, limit)?;
        while !search.done {
            let examine = async {
                let page = self.storage.scan(VERSIONS, search.range.clone(), PAGE).await?;
                Ok(search.examine(page)?)
            };
            self.in_turn(requester, examine).await?;
            // A long search must not block other tasks, even if the storage never waits.
            tokio::task::yield_now().await;
        }
        let mut counted = stream::iter(search.found)
            .map(async |found| {
                let (providers, claims) = match known_count(&found.record.id) {
                    Some(count) => (count, 0),
                    None => {
                        let count =
                            async { Ok(self.count_claims(found.record.no, is_local(requester), now).await?) };
                        self.in_turn(requester, count).await?
                    }
                };
                Ok::<_, CatalogueError>((found, providers, claims))
            })
            .buffered(LIST_READS);
        let (mut files, mut all_claims, mut last) = (Vec::new(), 0, search.last);
        while let Some((Found { key, name, version, record }, providers, claims)) = counted.try_next().await?
        {
            files.push(record.with_name(name, version, providers));
            all_claims += claims;
            if all_claims >= MAX_CLAIMS {
                last = Some(key);
                break;
            }
        }
        Ok(ListPage { files, cursor: last.map(|key| [&[CURSOR], &key[..]].concat()) })
    }

    /// Runs a search that reads or compares many entries, in turn with other searches.
    ///
    /// # Errors
    /// [`CatalogueError::Busy`] if the wait was too long.
    pub async fn in_turn<T>(
        &self,
        requester: Option<IpAddr>,
        search: impl Future<Output = Result<T, CatalogueError>>,
    ) -> Result<T, CatalogueError> {
        let done = self.searches.run(requester.map(network_of), TURN_TIMEOUT, search).await;
        done.unwrap_or(Err(CatalogueError::Busy))
    }
}
