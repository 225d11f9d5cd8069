//! Lookup of files by name, id and prefix of an id.

use bytes::Bytes;

use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, FILES, FileEntry, VERSIONS, VersionRecord};
use enjambre_core::model::id::is_id_or_prefix;
use enjambre_core::{FileId, FileRecord, KeyRange, Name, StorageError, UnixMillis};

/// The number of files that the error for an ambiguous prefix lists.
pub const MAX_MATCHES: usize = 16;

/// The result of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The version of the name.
    pub version: u64,
    /// Whether the version was added; `false` if the file already was the newest version.
    pub new: bool,
}

/// A parsed query of [`Catalogue::find`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The id of a file.
    Id(FileId),
    /// The first digits of the id of a file.
    Prefix(String),
    /// A name.
    Name(Name),
}

impl Query {
    /// Parses a query. Hexadecimal digits are an id or a prefix of one; other text, and fewer than 8 digits, is a name.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if the text is not a possible name.
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let parsed = match text.len() {
            _ if !is_id_or_prefix(text) => text.parse().map(Self::Name).ok(),
            64 => text.parse().map(Self::Id).ok(),
            _ => Some(Self::Prefix(text.to_owned())),
        };
        parsed.ok_or_else(|| not_found(text))
    }
}

/// The error for a query without a match.
pub(crate) fn not_found(query: &str) -> CatalogueError {
    CatalogueError::NotFound(format!("{query:?}"))
}

impl Catalogue {
    /// Returns the newest version of a name, the file with an id, or the file whose id begins with 8 or more digits.
    pub async fn find(&self, query: &str, now: UnixMillis) -> Result<FileRecord, CatalogueError> {
        match Query::parse(query)? {
            Query::Id(id) => self.file(&id, now).await?.ok_or_else(|| not_found(query)),
            Query::Prefix(prefix) => self.find_by_prefix(&prefix, now).await,
            Query::Name(name) => {
                let newest = self.newest_version(&name).await?;
                let (version, record, _) = newest.ok_or_else(|| not_found(query))?;
                let providers = self.count_providers(record.no, now).await?;
                Ok(record.with_name(name, version, providers))
            }
        }
    }

    /// Returns the file with this id, under the name of its latest publication. `None` if the catalogue does not have it.
    pub async fn file(&self, id: &FileId, now: UnixMillis) -> Result<Option<FileRecord>, CatalogueError> {
        let Some((entry, _)) = self.read_record::<FileEntry>(FILES, &layout::file_key(id)).await? else {
            return Ok(None);
        };
        let providers = self.count_providers(entry.no, now).await?;
        Ok(Some(entry.with_id(*id, providers)))
    }

    async fn find_by_prefix(&self, prefix: &str, now: UnixMillis) -> Result<FileRecord, CatalogueError> {
        let page = self.storage.scan(FILES, layout::id_range(prefix), MAX_MATCHES + 1).await?;
        let mut matches = Vec::with_capacity(page.len().min(MAX_MATCHES));
        for (key, _) in page.iter().take(MAX_MATCHES) {
            let id = layout::read_file_key(FILES, key.as_bytes())?;
            matches.extend(self.file(&id, now).await?);
        }
        if matches.len() > 1 {
            let more = page.len() > MAX_MATCHES;
            return Err(CatalogueError::Ambiguous { prefix: prefix.to_owned(), matches, more });
        }
        matches.pop().ok_or_else(|| CatalogueError::NotFound(format!("a file whose id begins with {prefix}")))
    }

    /// Returns the newest version of the name with its stored bytes, or `None` if the catalogue does not have the name.
    pub async fn newest_version(
        &self,
        name: &Name,
    ) -> Result<Option<(u64, VersionRecord, Bytes)>, StorageError> {
        let range = KeyRange::prefix(&layout::versions_prefix(name));
        let Some((key, raw)) = self.storage.scan(VERSIONS, range, 1).await?.into_iter().next() else {
            return Ok(None);
        };
        let (_, version) = layout::read_version_key(key.as_bytes())?;
        Ok(Some((version, layout::decode(VERSIONS, &raw)?, raw)))
    }
}
