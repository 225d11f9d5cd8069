//! The mark of a database that is the target of a copy, with the progress of the copy.
//!
//! It is written before all other data and removed after the final comparison. Two processes can copy to the same networked
//! database. So every batch of a copy has the condition that the mark is unchanged: the copy that started last continues, and
//! all others fail with a `Conflict`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use enjambre_core::model::cbor;
use enjambre_core::{Batch, Durability, Key, Space, Storage, StorageError};

/// The space that contains the mark.
pub const MARKS: Space = Space::new("copying");
/// The version of [`Mark`].
pub const VERSION: u64 = 1;

/// The state of a copy, stored in its target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The version of the record. Only [`VERSION`] is supported.
    pub v: u64,
    /// Identifies the source. A copy from another source cannot be resumed.
    pub source: ByteBuf,
    /// Identifies the process that wrote the record.
    #[serde(default)]
    run: ByteBuf,
    /// Whether the previous data of the target is being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emptying: bool,
    /// The progress of the content of files, or `None` before the first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Cursor>,
}

/// The progress of the content of files. All pieces up to it are durable in the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Identifies the state of the index of the source. The progress is valid for this state only.
    pub of: ByteBuf,
    /// The stamp of the content database. The progress is valid for a database with this stamp only.
    #[serde(default)]
    pub stamp: ByteBuf,
    /// The last copied piece: file id (32 bytes) ‖ index (4 bytes).
    pub after: ByteBuf,
    /// The number of copied pieces.
    pub pieces: u64,
    /// The size of the copied pieces in bytes.
    pub bytes: u64,
}

impl Mark {
    /// The mark of a new copy.
    pub fn new(source: &[u8]) -> Self {
        Self { v: VERSION, source: ByteBuf::from(source), ..Self::default() }
    }
}

/// Returns the mark of a database if it is the target of an unfinished copy.
pub async fn find(storage: &dyn Storage) -> Result<Option<Mark>, StorageError> {
    Marking::read(storage).await?.mark()
}

/// The mark of a target as this copy last read or wrote it.
#[derive(Debug)]
pub struct Marking<'a> {
    target: &'a dyn Storage,
    run: [u8; 16],
    stored: Option<Bytes>,
}

impl<'a> Marking<'a> {
    /// Reads the mark of the target.
    pub async fn read(target: &'a dyn Storage) -> Result<Self, StorageError> {
        let stored = target.get(MARKS, &[state_key()]).await?.into_iter().next().flatten();
        Ok(Self { target, run: rand::random(), stored })
    }

    /// Returns the mark, if there is one.
    pub fn mark(&self) -> Result<Option<Mark>, StorageError> {
        /// The field that all versions have in common.
        #[derive(Deserialize)]
        struct Version {
            v: u64,
        }
        let Some(stored) = &self.stored else { return Ok(None) };
        let Version { v } = decode(stored)?;
        Ok(Some(if v == VERSION { decode(stored)? } else { Mark { v, ..Mark::default() } }))
    }

    /// Adds the condition that the mark is unchanged.
    pub fn require(&self, batch: &mut Batch) {
        match &self.stored {
            Some(stored) => batch.require(MARKS, state_key(), stored.clone()),
            None => batch.require_absent(MARKS, state_key()),
        };
    }

    /// Replaces the mark. This commit and all earlier ones are durable.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if another copy changed it.
    pub async fn write(&mut self, mark: &Mark) -> Result<(), StorageError> {
        let mut value = Vec::new();
        let mark = Mark { run: ByteBuf::from(self.run), ..mark.clone() };
        ciborium::into_writer(&mark, &mut value)
            .expect("serialization of plain values to memory does not fail");
        let value = Bytes::from(value);
        let mut batch = Batch::new();
        self.require(&mut batch);
        batch.put(MARKS, state_key(), value.clone());
        self.target.commit(batch, Durability::Durable).await?;
        self.stored = Some(value);
        Ok(())
    }

    /// Removes the mark, which completes the copy. This commit and all earlier ones are durable.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if another copy changed it.
    pub async fn remove(&self) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        self.require(&mut batch);
        batch.delete(MARKS, state_key());
        self.target.commit(batch, Durability::Durable).await
    }
}

fn state_key() -> Key {
    Key::new(&b"state"[..]).expect("the length is valid")
}

fn decode<T: serde::de::DeserializeOwned>(mut value: &[u8]) -> Result<T, StorageError> {
    cbor::decode(&mut value, 16).map_err(|error| {
        let what = "malformed mark of a copy".to_owned();
        StorageError::Corrupt { what, source: Some(error.to_string().into()) }
    })
}
