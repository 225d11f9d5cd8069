//! The mark of a database that is the target of a copy.
//!
//! It is there from before anything else is written until everything was compared, and says how far the copy is. A
//! database behind a network may be the target of two copies that know nothing of each other. So every change of the mark
//! has the condition that it still is what this copy wrote, and so has whatever is written beside it: of several copies
//! the one that began last goes on, and the others end with a `Conflict`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, Space};

/// The space of a target in which the mark is.
pub const MARKS: Space = Space::new("copying");
/// The version of [`Mark`].
pub const VERSION: u64 = 1;

/// What the target of a copy says as long as the copy is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The version of the record. Of another than [`VERSION`] nothing else is known.
    pub v: u64,
    /// Names the source; only the same one goes on.
    pub source: ByteBuf,
    /// Names the run of the program that wrote it: no two runs write the same.
    #[serde(default)]
    run: ByteBuf,
    /// Whether what the target held before is still being removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emptying: bool,
    /// How far the content of files is; none where none is copied yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Cursor>,
}

/// How far the content of files is: everything before is in the target, and safe from a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Names the state of the source's index; of another one nothing is known to be there.
    pub of: ByteBuf,
    /// What the store of content has as its [`crate::library::stamp`]; in one with another nothing is known to be there.
    #[serde(default)]
    pub stamp: ByteBuf,
    /// The piece that was copied last: file id (32) ‖ number of the piece (4).
    pub after: ByteBuf,
    /// How many pieces were copied.
    pub pieces: u64,
    /// How many bytes they have.
    pub bytes: u64,
}

impl Mark {
    /// The mark of a copy that begins.
    pub fn new(source: &[u8]) -> Self {
        Self::of_version(VERSION, source)
    }

    fn of_version(v: u64, source: &[u8]) -> Self {
        Self { v, source: ByteBuf::from(source), run: ByteBuf::new(), emptying: false, content: None }
    }
}

/// The mark of a database that is the target of a copy under way.
pub async fn find(storage: &dyn Storage) -> Result<Option<Mark>, StorageError> {
    Marking::read(storage).await?.mark()
}

/// The mark of a target as this copy found it or wrote it last.
#[derive(Debug)]
pub struct Marking<'a> {
    target: &'a dyn Storage,
    run: [u8; 16],
    stored: Option<Bytes>,
}

impl<'a> Marking<'a> {
    /// Reads what the target has.
    pub async fn read(target: &'a dyn Storage) -> Result<Self, StorageError> {
        let stored = target.get(MARKS, &[state_key()]).await?.into_iter().next().flatten();
        Ok(Self { target, run: rand::random(), stored })
    }

    /// The mark that is there.
    pub fn mark(&self) -> Result<Option<Mark>, StorageError> {
        /// The part of a mark that every version has.
        #[derive(Deserialize)]
        struct Version {
            v: u64,
        }
        let Some(stored) = &self.stored else { return Ok(None) };
        let Version { v } = decode(stored)?;
        Ok(Some(if v == VERSION { decode(stored)? } else { Mark::of_version(v, &[]) }))
    }

    /// Adds the condition that the mark still is what it was.
    pub fn require(&self, batch: &mut Batch) {
        match &self.stored {
            Some(stored) => batch.require(MARKS, state_key(), stored.clone()),
            None => batch.require_absent(MARKS, state_key()),
        };
    }

    /// Writes another mark, safe from a power cut along with everything that was written before.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] where another copy changed it.
    pub async fn write(&mut self, mark: &Mark) -> Result<(), StorageError> {
        let mut value = Vec::new();
        let mark = Mark { run: ByteBuf::from(self.run), ..mark.clone() };
        ciborium::into_writer(&mark, &mut value).expect("plain values are written to memory without fail");
        let value = Bytes::from(value);
        let mut batch = Batch::new();
        self.require(&mut batch);
        batch.put(MARKS, state_key(), value.clone());
        self.target.commit(batch, Durability::Durable).await?;
        self.stored = Some(value);
        Ok(())
    }

    /// Takes the mark away: the copy is whole, and that is safe from a power cut on return.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] where another copy changed it.
    pub async fn remove(&self) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        self.require(&mut batch);
        batch.delete(MARKS, state_key());
        self.target.commit(batch, Durability::Durable).await
    }
}

fn state_key() -> Key {
    Key::new(&b"state"[..]).expect("it has 5 bytes")
}

fn decode<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, StorageError> {
    ciborium::de::from_reader_with_recursion_limit(value, 16).map_err(|error| {
        let what = "the mark of a copy cannot be read".to_owned();
        StorageError::Corrupt { what, source: Some(error.to_string().into()) }
    })
}
