//! Names, their versions, and the files behind them: publish, find, list.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::timeout;

use super::error::CatalogueError;
use super::layout::{
    self, Claim, FILE_NAMES, FILES, FileEntry, FileNumber, PROVIDERS, RECORD, VERSIONS, VersionRecord,
};
use super::pattern::Pattern;
use super::peers::Session;
use super::remembered::Answers;
use super::{ATTEMPTS, Catalogue, LIST_READS, TURN, held_up};
use crate::model::id::FileId;
use crate::model::layout::PieceLayout;
use crate::model::name::{MAX_NAME, Name};
use crate::model::record::{FileRecord, Publication};
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

/// How many files an ambiguous prefix lists.
pub const MAX_MATCHES: usize = 16;
/// How many names one page of a list looks at.
const MAX_EXAMINED: usize = 10_000;
/// How many bytes the records of one page take at most, so that the reply stays below the limit of a header.
const MAX_PAGE_BYTES: usize = 48 * 1024;
/// The bytes that a record takes beside its name: field names, two ids and the numbers at their largest.
const RECORD_BYTES: usize = 200;
/// How often a publication is tried again of which it is not known what became. A database that keeps it to itself once more
/// waits for something that does not come soon.
const DOUBTS: u32 = 1;
/// The first byte of a cursor: the version of what follows, the last key looked at.
const CURSOR: u8 = 1;

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The version of the name that the file is.
    pub version: u64,
    /// False where it was the newest already.
    pub new: bool,
}

/// One page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// The files. May be none before the end.
    pub files: Vec<FileRecord>,
    /// Where the next page begins; none at the end.
    pub cursor: Option<Vec<u8>>,
}

impl Catalogue {
    /// Makes the file the newest version of the name, durably, and the session's peer one of its providers. Where it is the
    /// newest already, no version is added.
    pub async fn publish(
        &self,
        session: &Session,
        publication: &Publication,
        now: u64,
    ) -> Result<Published, CatalogueError> {
        let Publication { name, id, size, kind } = publication;
        let by = session.peer;
        PieceLayout::new(*size)?;
        // Most names are not reserved, so it is only looked at where that proves wrong.
        let mut reservation = None;
        let mut doubts = 0;
        for _ in 0..ATTEMPTS {
            let newest = self.newest(name).await?;
            let file_key = layout::file_key(id);
            let known = self.read(FILES, &file_key).await?;
            let mut batch = Batch::new();
            let no = match known {
                Some(raw) => {
                    let FileEntry { no, .. } = layout::decode(FILES, &raw)?;
                    batch.require(FILES, file_key.clone(), raw);
                    no
                }
                None => {
                    batch.require_absent(FILES, file_key.clone());
                    FileNumber(self.next_number().await?)
                }
            };
            let published = match &newest {
                Some((version, record, raw)) if record.id == *id => {
                    // Somebody may be about to forget the file: either this comes first, or it is published anew.
                    batch.require(VERSIONS, layout::version_key(name, *version), raw.clone());
                    Published { version: *version, new: false }
                }
                _ if self.versions() >= self.max_versions => return Err(CatalogueError::TooManyFiles),
                _ => {
                    let version = newest.as_ref().map_or(1, |(version, ..)| version.saturating_add(1));
                    let key = layout::version_key(name, version);
                    let record =
                        VersionRecord { v: RECORD, id: *id, size: *size, kind: *kind, at: now, by, no };
                    batch.require_absent(VERSIONS, key.clone());
                    batch.put(VERSIONS, key, layout::encode(&record));
                    batch.put(FILE_NAMES, layout::file_name_key(id, name, version), layout::MARK);
                    Published { version, new: true }
                }
            };
            let (at, publisher) = match &newest {
                Some((_, record, _)) if !published.new => (record.at, record.by),
                _ => (now, by),
            };
            let entry = FileEntry {
                v: RECORD,
                name: name.clone(),
                version: published.version,
                size: *size,
                kind: *kind,
                at,
                by: publisher,
                no,
                gone: None,
            };
            batch.put(FILES, file_key, layout::encode(&entry));
            super::reservations::require(&mut batch, name, reservation.as_ref());
            super::providers::require_session(&mut batch, session);
            super::providers::put_claim(&mut batch, session, no, Claim { size: *size, complete: true });
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => {
                    self.counts.versions.fetch_add(u64::from(published.new), Ordering::Relaxed);
                    self.forget_remembered(name, id);
                    return Ok(published);
                }
                Ok(false) => {
                    self.still_valid(session).await?;
                    reservation = self.may_publish(name, by).await?;
                }
                Err(StorageError::Indeterminate { source }) if doubts < DOUBTS => {
                    doubts += 1;
                    // Read what became of it. Ours is the version only if all of it is ours.
                    let now_newest = self.newest(name).await?;
                    let ours = now_newest.is_some_and(|(_, record, _)| {
                        record.id == *id && record.by == by && record.at == now
                    });
                    if published.new && ours {
                        self.storage.sync().await?;
                        self.forget_remembered(name, id);
                        return Ok(published);
                    }
                    tracing::warn!(error = %source, "a publication was not applied and is tried again");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    async fn newest(&self, name: &Name) -> Result<Option<(u64, VersionRecord, Bytes)>, StorageError> {
        let range = KeyRange::prefix(&layout::versions_prefix(name));
        let Some((key, raw)) = self.storage.scan(VERSIONS, range, 1).await?.into_iter().next() else {
            return Ok(None);
        };
        let (_, version) = layout::read_version_key(key.as_bytes())?;
        Ok(Some((version, layout::decode(VERSIONS, &raw)?, raw)))
    }

    /// The newest file of a name, or the file of an id or of a prefix of 8 or more digits of one.
    pub async fn find(&self, query: &str, now: u64) -> Result<FileRecord, CatalogueError> {
        let digits = query.bytes().all(|byte| byte.is_ascii_hexdigit());
        let not_found = || CatalogueError::NotFound { what: format!("{query:?}") };
        if digits && query.len() == 64 {
            let id: FileId = query.parse().map_err(|_| not_found())?;
            return self.file(&id, now).await?.ok_or_else(not_found);
        }
        if digits && (8..64).contains(&query.len()) {
            return self.find_by_prefix(query, now).await;
        }
        let name: Name = query.parse().map_err(|_| not_found())?;
        let (version, record) = match self.remembered.name(query, now) {
            Some(found) => (found.version, found.record.clone()),
            None => {
                let stamp = self.remembered.name_stamp(query);
                let (version, record, _) = self.newest(&name).await?.ok_or_else(not_found)?;
                self.remembered.remember_name(&name, version, record.clone(), now, stamp);
                (version, record)
            }
        };
        let providers = match self.look_up(&record.id, now).await? {
            Some(file) => self.count_providers(&file, now).await?,
            None => 0,
        };
        Ok(file_record(name, version, record, providers))
    }

    /// The answers to a query that was asked a moment ago by itself or by the id of the file; none where the database
    /// has to be asked, or [`Catalogue::find`] has another answer than [`Answers::found`].
    pub fn find_remembered(&self, query: &str, now: u64) -> Option<Arc<Answers>> {
        if query.len() == 64
            && let Ok(id) = query.parse()
        {
            return self.answers_remembered(&id, now);
        }
        let name = self.remembered.name(query, now)?;
        let file = self.remembered.file(&name.record.id, now)?;
        let VersionRecord { size, kind, at, by, no, .. } = name.record;
        let FileEntry { name: of_file, version, .. } = &file.entry;
        let latest = (size, kind, at, by, no);
        let entry = &file.entry;
        let same = *version == name.version
            && of_file.as_str() == query
            && latest == (entry.size, entry.kind, entry.at, entry.by, entry.no);
        if same { self.answers_for(&file, now) } else { None }
    }

    /// The answers about a file that was asked for a moment ago.
    pub fn answers_remembered(&self, id: &FileId, now: u64) -> Option<Arc<Answers>> {
        self.answers_for(&*self.remembered.file(id, now)?, now)
    }

    fn forget_remembered(&self, name: &Name, id: &FileId) {
        self.remembered.forget_name(name.as_str());
        self.remembered.forget_file(id);
    }

    /// The file with this id, under the name of its latest publication.
    pub async fn file(&self, id: &FileId, now: u64) -> Result<Option<FileRecord>, CatalogueError> {
        match self.look_up(id, now).await? {
            Some(file) => Ok(Some(file.record(self.count_providers(&file, now).await?))),
            None => Ok(None),
        }
    }

    async fn find_by_prefix(&self, prefix: &str, now: u64) -> Result<FileRecord, CatalogueError> {
        let page = self.storage.scan(FILES, id_range(prefix), MAX_MATCHES + 1).await?;
        let mut matches = Vec::with_capacity(page.len().min(MAX_MATCHES));
        for (key, _) in page.iter().take(MAX_MATCHES) {
            let id = layout::read_file_key(FILES, key.as_bytes())?;
            matches.extend(self.file(&id, now).await?);
        }
        if matches.len() > 1 {
            let more = page.len() > MAX_MATCHES;
            return Err(CatalogueError::Ambiguous { prefix: prefix.to_owned(), matches, more });
        }
        matches
            .pop()
            .ok_or_else(|| CatalogueError::NotFound { what: format!("a file whose id begins with {prefix}") })
    }

    /// One page of the names that match, in the order of their bytes and the newest version of a name first.
    /// `limit` is the most files wanted.
    pub async fn list(
        &self,
        pattern: &str,
        cursor: Option<&[u8]>,
        limit: usize,
        now: u64,
    ) -> Result<ListPage, CatalogueError> {
        let pattern = Pattern::new(pattern);
        let mut range = KeyRange::prefix(pattern.prefix().as_bytes());
        if let Some(cursor) = cursor {
            let key = cursor.strip_prefix(&[CURSOR]).filter(|key| key.len() <= MAX_NAME + 9);
            let Some(key) = key.filter(|key| layout::read_version_key(key).is_ok()) else {
                return Err(CatalogueError::Malformed {
                    problem: "this cursor was not given here".to_owned(),
                });
            };
            let begin = Bound::Excluded(Bytes::copy_from_slice(key));
            // A cursor of another pattern must not widen the range.
            if matches!(&range.start, Bound::Included(start) if key >= &start[..]) {
                range.start = begin;
            }
        }
        let mut found = Vec::new();
        let (mut examined, mut bytes) = (0, 0);
        let mut last = None;
        'pages: while examined < MAX_EXAMINED && found.len() < limit {
            let page = self.as_list(self.storage.scan(VERSIONS, range.clone(), super::PAGE)).await?;
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
            // A long search lets others have their turn, whatever the storage does.
            tokio::task::yield_now().await;
        }
        let counted = stream::iter(found).map(async |(name, version, record)| {
            let remembered = self.answers_remembered(&record.id, now);
            let providers = match remembered {
                Some(answers) => answers.count,
                None => self.as_list(self.count_claims(record.no, now)).await?,
            };
            Ok::<_, CatalogueError>(file_record(name, version, record, providers))
        });
        let files = counted.buffered(LIST_READS).try_collect().await?;
        Ok(ListPage { files, cursor: last.map(cursor_after) })
    }

    /// Reads for a list, when it is its turn among the lists.
    async fn as_list<T, E>(&self, read: impl Future<Output = Result<T, E>>) -> Result<T, CatalogueError>
    where
        CatalogueError: From<E>,
    {
        // They are never closed.
        let place = timeout(TURN, self.list_reads.acquire()).await;
        let _place = place.map_err(|_| held_up("other lists were being read"))?;
        Ok(read.await?)
    }

    /// Takes a file, the claims to have it and all names that lead to it out of the catalogue, unless its entry is
    /// no longer `raw`: in one step where there are not very many, else the names last. Returns how many versions
    /// went, or none if the file was left alone.
    pub(super) async fn remove_file(
        &self,
        id: &FileId,
        no: FileNumber,
        raw: &Bytes,
    ) -> Result<Option<u64>, StorageError> {
        let mut removed = 0;
        loop {
            let mut batch = Batch::new();
            batch.require(FILES, layout::file_key(id), raw.clone());
            let (claims, mut last) =
                self.page(PROVIDERS, KeyRange::prefix(&layout::providers_prefix(no))).await?;
            for (key, _) in claims {
                let peer = layout::read_provider_key(key.as_bytes())?;
                super::providers::delete_claim(&mut batch, peer, no);
                super::providers::note_cleared(&mut batch, peer);
            }
            let mut names = Vec::new();
            if last {
                let page;
                (page, last) = self.page(FILE_NAMES, KeyRange::prefix(id.as_bytes())).await?;
                for (key, _) in page {
                    let version = layout::version_key_of_file_name(key.as_bytes())?;
                    names.push(layout::read_version_key(version.as_bytes())?.0);
                    batch.delete(VERSIONS, version);
                    batch.delete(FILE_NAMES, key);
                }
            }
            if last {
                batch.delete(FILES, layout::file_key(id));
            }
            if !self.try_commit(batch, Durability::Buffered).await? {
                return Ok(None);
            }
            self.remembered.forget_file(id);
            names.iter().for_each(|name| self.remembered.forget_name(name.as_str()));
            let gone = names.len() as u64;
            let subtract = |versions: u64| Some(versions.saturating_sub(gone));
            let _ = self.counts.versions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
            removed += gone;
            if last {
                return Ok(Some(removed));
            }
        }
    }

    /// The first page of this range, and whether it is all there is.
    async fn page(&self, space: Space, range: KeyRange) -> Result<(Vec<(Key, Bytes)>, bool), StorageError> {
        let page = self.storage.scan(space, range.clone(), super::PAGE).await?;
        // It may be cut short by its bytes, so its length does not tell.
        let all = match page.last() {
            Some((last, _)) => self.storage.scan(space, range.after(last), 1).await?.is_empty(),
            None => true,
        };
        Ok((page, all))
    }
}

fn cursor_after(key: Bytes) -> Vec<u8> {
    [&[CURSOR], &key[..]].concat()
}

fn file_record(name: Name, version: u64, record: VersionRecord, providers: u32) -> FileRecord {
    let VersionRecord { id, size, kind, at, by, .. } = record;
    FileRecord { id, name, version, size, kind, published_ms: at, publisher: by, providers }
}

/// The ids whose hexadecimal digits begin with these, of which there are fewer than 64.
pub(super) fn id_range(digits: &str) -> KeyRange {
    let nibble = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0) as u8;
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    for (at, digit) in digits.bytes().take(64).enumerate() {
        let (shift, mask) = if at % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        low[at / 2] |= nibble(digit) << shift;
        high[at / 2] = (high[at / 2] & mask) | (nibble(digit) << shift);
    }
    KeyRange {
        start: Bound::Included(Bytes::copy_from_slice(&low)),
        end: Bound::Included(Bytes::copy_from_slice(&high)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_range_of_a_prefix_holds_exactly_the_ids_with_it(
            id in any::<[u8; 32]>(), other in any::<[u8; 32]>(), shared in 0usize..32, length in 8usize..64,
        ) {
            let mut near = other;
            near[..shared].copy_from_slice(&id[..shared]);
            let text = hex::encode(id);
            for candidate in [id, near, other] {
                let inside = id_range(&text[..length]).contains(&layout::file_key(&FileId::from_bytes(candidate)));
                prop_assert_eq!(inside, hex::encode(candidate).starts_with(&text[..length]));
            }
        }
    }
}
