//! Lists of names.

use std::ops::Bound;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::timeout;

use super::access::{PAGE, TURN_TIMEOUT, turn_timeout};
use super::catalogue::{Catalogue, LIST_READS};
use super::error::CatalogueError;
use super::layout::{self, VERSIONS, VersionRecord};
use super::pattern::Pattern;
use enjambre_core::model::name::MAX_NAME;
use enjambre_core::{FileId, FileRecord, KeyRange, StorageError, UnixMillis};

/// The number of names that one page examines.
const MAX_EXAMINED: usize = 10_000;
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

impl Catalogue {
    /// Returns one page of at most `limit` versions of matching names, sorted by the bytes of the name, newest version first.
    /// `known_count` may return the number of providers of a file, which then is not counted in the database.
    pub async fn list(
        &self,
        pattern: &str,
        cursor: Option<&[u8]>,
        limit: usize,
        now: UnixMillis,
        known_count: impl Fn(&FileId) -> Option<u32>,
    ) -> Result<ListPage, CatalogueError> {
        let pattern = Pattern::new(pattern);
        let mut range = KeyRange::prefix(pattern.prefix().as_bytes());
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
        let mut found = Vec::new();
        let (mut examined, mut bytes) = (0, 0);
        let mut last = None;
        'pages: while examined < MAX_EXAMINED && found.len() < limit {
            let page = self.in_turn(self.storage.scan(VERSIONS, range.clone(), PAGE)).await?;
            let Some((end, _)) = page.last() else {
                last = None;
                break;
            };
            range = range.after(end);
            for (key, raw) in page {
                let (name, version) = layout::read_version_key(key.as_bytes())?;
                if pattern.matches(name.as_str()) {
                    let size = name.as_str().len() + RECORD_BYTES;
                    if found.len() == limit || bytes + size > MAX_PAGE_BYTES {
                        break 'pages;
                    }
                    bytes += size;
                    found.push((name, version, layout::decode::<VersionRecord>(VERSIONS, &raw)?));
                }
                examined += 1;
                last = Some(key.into_bytes());
            }
            // A long search must not block other tasks, even if the storage never waits.
            tokio::task::yield_now().await;
        }
        let counted = stream::iter(found).map(async |(name, version, record)| {
            let providers = match known_count(&record.id) {
                Some(count) => count,
                None => self.in_turn(self.count_providers(record.no, now)).await?,
            };
            Ok::<_, CatalogueError>(record.with_name(name, version, providers))
        });
        let files = counted.buffered(LIST_READS).try_collect().await?;
        Ok(ListPage { files, cursor: last.map(|key| [&[CURSOR], &key[..]].concat()) })
    }

    /// Reads for a list, within the limit of concurrent reads of all lists.
    async fn in_turn<T>(
        &self,
        read: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        // The semaphore is never closed.
        let permit = timeout(TURN_TIMEOUT, self.list_reads.acquire()).await;
        let _permit = permit.map_err(|_| turn_timeout("a list among other lists"))?;
        read.await
    }
}
