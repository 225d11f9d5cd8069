//! What a store of content says as long as content is copied to it: which copying that is.
//!
//! How far a copy is stands in another database. Only a store with the stamp of that copying has what is told there.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use bytes::Bytes;

use super::content::ContentStore;
use super::content_files::{remove_file, sync_all_of};
use super::error::LibraryError;
use super::layout::blocking;
use crate::storage::copy::mark::MARKS;
use crate::storage::value::{Batch, Durability, Key};

/// The file in a folder of content.
const FILE: &str = "copying";
/// How many bytes a stamp has.
const LENGTH: u64 = 16;

fn key() -> Key {
    Key::new(&b"content"[..]).expect("it has 7 bytes")
}

/// The stamp of a store, if it has one.
pub async fn read(store: &ContentStore) -> Result<Option<Bytes>, LibraryError> {
    match store {
        ContentStore::Database(content) => {
            Ok(content.get(MARKS, &[key()]).await?.into_iter().next().flatten())
        }
        ContentStore::Files(dir) => {
            let path = dir.join(FILE);
            blocking(move || {
                let mut stamp = Vec::new();
                // One byte more than a stamp has, so that what is longer is none.
                let read = File::open(&path).and_then(|file| file.take(LENGTH + 1).read_to_end(&mut stamp));
                match read {
                    Ok(_) => Ok(Some(stamp.into())),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(LibraryError::io("read", &path, error)),
                }
            })
            .await
        }
    }
}

/// Gives a store a stamp like no other, safe from a power cut on return.
pub async fn renew(store: &ContentStore) -> Result<Bytes, LibraryError> {
    let stamp = Bytes::copy_from_slice(&rand::random::<[u8; LENGTH as usize]>());
    match store {
        ContentStore::Database(content) => {
            let mut batch = Batch::new();
            batch.put(MARKS, key(), stamp.clone());
            content.commit(batch, Durability::Durable).await?;
        }
        ContentStore::Files(dir) => {
            let (dir, stamp) = (dir.clone(), stamp.clone());
            blocking(move || {
                std::fs::create_dir_all(&dir)
                    .map_err(|error| LibraryError::io("create the folder", &dir, error))?;
                let path = dir.join(FILE);
                File::create(&path)
                    .and_then(|mut file| file.write_all(&stamp))
                    .map_err(|error| LibraryError::io("write", &path, error))?;
                sync_all_of(&dir)
            })
            .await?;
        }
    }
    Ok(stamp)
}

/// Takes the stamp away, where there is one.
pub async fn remove(store: &ContentStore) -> Result<(), LibraryError> {
    match store {
        ContentStore::Database(content) => {
            let mut batch = Batch::new();
            batch.delete(MARKS, key());
            Ok(content.commit(batch, Durability::Durable).await?)
        }
        ContentStore::Files(dir) => {
            let path = dir.join(FILE);
            blocking(move || remove_file(&path)).await
        }
    }
}
