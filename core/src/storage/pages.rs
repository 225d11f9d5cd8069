//! Paging over a scan: [`StorageExt::pages`] and [`StorageExt::entries`], and [`PageBudget`] for backends.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Storage;
use super::error::StorageError;
use super::value::{Key, KeyRange, Space};

/// Convenience methods for every [`Storage`].
pub trait StorageExt: Storage {
    /// Reads `range` page by page, with at most `limit` entries in each page. Several pages are not a snapshot.
    ///
    /// ```
    /// # use enjambre_core::{KeyRange, Space, Storage, StorageError, StorageExt};
    /// # async fn count(storage: &dyn Storage) -> Result<usize, StorageError> {
    /// const USERS: Space = Space::new("users");
    /// let (mut pages, mut count) = (storage.pages(USERS, KeyRange::all(), 1000), 0);
    /// while let Some(page) = pages.next().await? {
    ///     count += page.len();
    /// }
    /// # Ok(count)
    /// # }
    /// ```
    fn pages(&self, space: Space, range: KeyRange, limit: usize) -> Pages<'_, Self> {
        Pages { storage: self, space, range, limit, ended: false }
    }

    /// Reads `range` entry by entry, and fetches at most `limit` entries at once.
    fn entries(&self, space: Space, range: KeyRange, limit: usize) -> Entries<'_, Self> {
        Entries { pages: self.pages(space, range, limit), page: VecDeque::new() }
    }
}

impl<S: Storage + ?Sized> StorageExt for S {}

/// The pages of a scan, see [`StorageExt::pages`].
#[derive(Debug)]
pub struct Pages<'a, S: ?Sized> {
    storage: &'a S,
    space: Space,
    range: KeyRange,
    limit: usize,
    ended: bool,
}

impl<S: Storage + ?Sized> Pages<'_, S> {
    /// Returns the next page, or `None` after the last one. A page is never empty. After an error the same page may be
    /// requested again.
    pub async fn next(&mut self) -> Result<Option<Vec<(Key, Bytes)>>, StorageError> {
        if self.ended {
            return Ok(None);
        }
        let page = self.storage.scan(self.space, self.range.clone(), self.limit).await?;
        match page.last() {
            Some((last, _)) => self.range = self.range.after(last),
            None => self.ended = true,
        }
        Ok((!page.is_empty()).then_some(page))
    }
}

/// The entries of a scan in ascending order of their keys, see [`StorageExt::entries`].
#[derive(Debug)]
pub struct Entries<'a, S: ?Sized> {
    pages: Pages<'a, S>,
    page: VecDeque<(Key, Bytes)>,
}

impl<S: Storage + ?Sized> Entries<'_, S> {
    async fn fill(&mut self) -> Result<(), StorageError> {
        if self.page.is_empty()
            && let Some(page) = self.pages.next().await?
        {
            self.page = page.into();
        }
        Ok(())
    }

    /// Returns the next entry without consuming it.
    pub async fn peek(&mut self) -> Result<Option<&(Key, Bytes)>, StorageError> {
        self.fill().await?;
        Ok(self.page.front())
    }

    /// Consumes the entry that [`Entries::peek`] returned.
    pub fn skip(&mut self) {
        self.page.pop_front();
    }

    /// Returns and consumes the next entry, or `None` at the end of the range.
    pub async fn next(&mut self) -> Result<Option<(Key, Bytes)>, StorageError> {
        self.fill().await?;
        Ok(self.page.pop_front())
    }
}

/// The number of entries of the first request for a page.
const FIRST_REQUEST: usize = 4;
/// The maximum ratio of the entries of a request to those before it.
const GROWTH: usize = 8;

/// The size of the requests for a page from a server that limits the entries of a reply, but not its bytes.
///
/// The first request is for few entries, and each further one for those that fill the page if they are as large as the entries
/// before them on average.
#[derive(Debug)]
pub struct PageBudget {
    limit: usize,
    max_bytes: usize,
    entries: usize,
    bytes: usize,
}

impl PageBudget {
    /// The budget of a page of at most `limit` entries, which ends when it has reached `max_bytes` bytes.
    pub const fn new(limit: usize, max_bytes: usize) -> Self {
        Self { limit, max_bytes, entries: 0, bytes: 0 }
    }

    /// Returns the number of entries to request next, or 0 if the page is complete.
    pub fn request(&self) -> usize {
        if self.is_complete() {
            return 0;
        }
        let wanted = if self.entries == 0 {
            FIRST_REQUEST
        } else {
            let average = self.bytes.div_ceil(self.entries).max(1);
            (self.max_bytes - self.bytes).div_ceil(average).min(self.entries * GROWTH)
        };
        wanted.min(self.limit - self.entries)
    }

    /// Counts an entry of the page with this size in bytes.
    pub const fn add(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// Returns whether the page needs no further entries.
    pub const fn is_complete(&self) -> bool {
        self.entries >= self.limit || self.bytes >= self.max_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;
    use crate::storage::value::{Batch, Durability};

    const SPACE: Space = Space::new("numbers");

    #[tokio::test]
    async fn pages_cover_the_range_in_order() {
        let storage = Memory::new();
        let mut batch = Batch::new();
        for number in 0..25u8 {
            batch.put(SPACE, Key::new(vec![number]).unwrap(), vec![number]);
        }
        storage.commit(batch, Durability::Buffered).await.unwrap();
        for (limit, expected) in [(1, vec![1; 25]), (10, vec![10, 10, 5]), (25, vec![25]), (100, vec![25])] {
            let (mut pages, mut sizes, mut seen) =
                (storage.pages(SPACE, KeyRange::all(), limit), vec![], vec![]);
            while let Some(page) = pages.next().await.unwrap() {
                sizes.push(page.len());
                seen.extend(page.into_iter().map(|(key, _)| key.as_bytes()[0]));
            }
            assert_eq!(sizes, expected);
            assert_eq!(seen, (0..25).collect::<Vec<_>>());
            assert_eq!(pages.next().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn entries_peek_does_not_consume() {
        let storage = Memory::new();
        let mut batch = Batch::new();
        for number in 0..3u8 {
            batch.put(SPACE, Key::new(vec![number]).unwrap(), vec![number]);
        }
        storage.commit(batch, Durability::Buffered).await.unwrap();
        let mut entries = storage.entries(SPACE, KeyRange::all(), 2);
        for number in 0..3u8 {
            assert_eq!(entries.peek().await.unwrap().unwrap().1, vec![number]);
            assert_eq!(entries.next().await.unwrap().unwrap().1, vec![number]);
        }
        assert_eq!(entries.peek().await.unwrap(), None);
        assert_eq!(entries.next().await.unwrap(), None);
    }

    /// The sizes of the requests for a page whose entries all have the same size.
    fn requests(limit: usize, max_bytes: usize, size: usize) -> Vec<usize> {
        let mut budget = PageBudget::new(limit, max_bytes);
        let mut requests = Vec::new();
        while !budget.is_complete() {
            requests.push(budget.request());
            for _ in 0..budget.request() {
                budget.add(size);
            }
        }
        assert_eq!(budget.request(), 0);
        requests
    }

    #[test]
    fn requests_for_a_page_grow_until_it_is_full() {
        assert_eq!(requests(1000, 10_000, 1), [4, 32, 288, 676]);
        assert_eq!(requests(1000, 10_000, 100), [4, 32, 64]);
        assert_eq!(requests(1000, 10_000, 3000), [4]);
        assert_eq!(requests(1000, 10_000, 2000), [4, 1]);
        assert_eq!(requests(1, 10_000, 0), [1]);
        assert_eq!(requests(0, 10_000, 1), []);
    }
}
