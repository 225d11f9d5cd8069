//! The location of the databases of a node, as a storage backend sees it.
//!
//! A backend receives its settings, a [`Place`] and a [`Role`], and derives the path of a file or the name of a schema
//! from them. The same place with another role must lead to another database.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::RngExt;

use super::Role;
use super::database_file::{create_private_dir, create_private_file, path_for, sync_parent_dir};
use super::error::StorageError;
use super::value::Space;
use crate::runtime::rng;

/// The prefix of the names of scratch places.
const PREFIX: &str = "enjambre_scratch_";

/// The processes that use a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tenancy {
    /// Any number of processes at once: the catalogue, which several trackers can share.
    Shared,
    /// One process at a time: the library of a peer.
    Single,
    /// One process at a time, and a database of its own for each data directory: the library of a tracker that stores
    /// replicas, beside a catalogue that other trackers may share.
    PerFolder,
}

/// The location of the databases of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The directory that relative paths start from. It exists when a backend is opened.
    pub data_dir: PathBuf,
    /// The processes that use the databases.
    pub tenancy: Tenancy,
    /// Set if the databases are temporary. `data_dir` is an empty directory then, and a database on a server must be
    /// kept apart by the name of the scratch place.
    pub scratch: Option<Scratch>,
}

impl Place {
    /// The place of a node with this data directory.
    pub fn new(data_dir: impl Into<PathBuf>, tenancy: Tenancy) -> Self {
        Self { data_dir: data_dir.into(), tenancy, scratch: None }
    }

    /// A temporary place.
    pub fn temporary(scratch: Scratch, tenancy: Tenancy) -> Self {
        Self { data_dir: scratch.data_dir(), tenancy, scratch: Some(scratch) }
    }

    /// Returns the path of a database file or directory for a role.
    ///
    /// `configured` is the path from the settings, relative to the data directory. The default is `catalogue` or
    /// `library` with the given extension. The content database has the suffix `-content` before its extension.
    pub fn database(&self, configured: Option<&Path>, extension: &str, role: Role) -> PathBuf {
        let default = match self.tenancy {
            Tenancy::Shared | Tenancy::PerFolder => "catalogue",
            Tenancy::Single => "library",
        };
        let path = configured.map_or_else(|| Path::new(default).with_extension(extension), Path::to_path_buf);
        let path = match (&self.scratch, path.file_name()) {
            (Some(scratch), _) => scratch.database(&scratch.home.join(path)),
            // Replicas never share a database with the catalogue, even if the settings contain an absolute path.
            (None, Some(name)) if self.tenancy == Tenancy::PerFolder && path.is_absolute() => {
                path.with_file_name("store").join(name)
            }
            (None, _) => self.data_dir.join(path),
        };
        path_for(role, &path)
    }

    /// Returns the name of a database on a server for a role: 1 to 62 lower-case letters, digits and underscores.
    ///
    /// `configured` is the name from the settings. The default is `enjambre_catalogue` or `enjambre_library`. A scratch place, the
    /// replicas of each tracker, and content have names of their own. Blocks.
    ///
    /// # Errors
    /// The configured name is invalid, or the id of the data directory cannot be read or created.
    pub fn database_name(&self, configured: Option<&str>, role: Role) -> Result<String, StorageError> {
        let default = match self.tenancy {
            Tenancy::Shared | Tenancy::PerFolder => "enjambre_catalogue",
            Tenancy::Single => "enjambre_library",
        };
        Self::check_database_name(configured)?;
        let scratch = self.scratch.as_ref().map(Scratch::name);
        let mut name = scratch.or(configured).unwrap_or(default).to_owned();
        if self.tenancy == Tenancy::PerFolder {
            name = format!("{name}_store_{}", self.folder_id()?.get(..8).unwrap_or_default());
        }
        if role == Role::Content {
            name.push_str("_content");
        }
        Ok(name)
    }

    /// Checks a name for [`Place::database_name`].
    ///
    /// # Errors
    /// The configured name is invalid.
    pub fn check_database_name(configured: Option<&str>) -> Result<(), StorageError> {
        match configured {
            Some(name) if Space::parse(name).is_none() || name.starts_with("pg_") => {
                Err(StorageError::backend(
                    format!("use the database name {name:?}"),
                    "use 1 to 32 lower-case letters, digits and underscores, starting with a letter and not with pg_",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Returns the random id of the data directory. Creates it if it does not exist. Blocks.
    ///
    /// # Errors
    /// The file `storage.id` cannot be read or created, or is damaged.
    pub fn folder_id(&self) -> Result<String, StorageError> {
        let path = self.data_dir.join("storage.id");
        let failed = |error: Error| {
            StorageError::backend(format!("read or create the id file {}", path.display()), error)
        };
        let read = || match std::fs::read_to_string(&path) {
            Ok(text) => {
                let id = text.trim_end();
                let is_valid = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
                if is_valid {
                    Ok(Some(id.to_owned()))
                } else {
                    Err(Error::other("the file does not contain a valid id; remove it"))
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        if let Some(id) = read().map_err(failed)? {
            return Ok(id);
        }
        let create = || {
            let draft = self.data_dir.join(format!("storage.id.{:016x}", rng().random::<u64>()));
            let mut file = create_private_file(&draft)?;
            writeln!(file, "{}", hex::encode(rng().random::<[u8; 16]>()))?;
            file.sync_all()?;
            // If several processes create the file, the first one wins.
            let linked = std::fs::hard_link(&draft, &path);
            std::fs::remove_file(&draft)?;
            match linked {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        };
        create().map_err(failed)?;
        sync_parent_dir(&path)?;
        read().map_err(failed)?.ok_or_else(|| failed(ErrorKind::NotFound.into()))
    }

    /// Returns the path of a file that a backend only reads, for example a password or a certificate.
    pub fn input_file(&self, configured: &Path) -> PathBuf {
        self.scratch.as_ref().map_or(&self.data_dir, |scratch| &scratch.home).join(configured)
    }
}

/// A temporary place for databases that are removed after use, apart from the data of the node. Clones refer to the
/// same place.
///
/// The database of an embedded backend is in a new directory beside the configured path, and thus on the same disk.
#[derive(Debug, Clone)]
pub struct Scratch {
    name: String,
    home: PathBuf,
    folders: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl PartialEq for Scratch {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.home == other.home
    }
}

impl Eq for Scratch {}

impl Scratch {
    /// A scratch place with a random name. `home` is the data directory of the node.
    pub fn new(home: &Path) -> Self {
        Self::with_name(home, format!("{PREFIX}{:012x}", rng().random::<u64>() >> 16))
    }

    /// The scratch place of another process, by its name. Returns `None` if the name is not valid.
    pub fn open(home: &Path, name: &str) -> Option<Self> {
        let random = name.strip_prefix(PREFIX)?;
        let is_valid = random.len() == 12 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_valid.then(|| Self::with_name(home, name.to_owned()))
    }

    fn with_name(home: &Path, name: String) -> Self {
        let folders = BTreeSet::from([home.join(&name)]);
        Self { name, home: home.to_owned(), folders: Arc::new(Mutex::new(folders)) }
    }

    /// The unique name: 29 lower-case letters, digits and underscores.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The data directory of the node.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The temporary data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join(&self.name)
    }

    fn database(&self, path: &Path) -> PathBuf {
        let folder = path.parent().unwrap_or(&self.home).join(&self.name);
        let database = folder.join(path.file_name().unwrap_or("database".as_ref()));
        self.folders.lock().insert(folder);
        database
    }

    /// Creates the temporary data directory, readable by its owner only, and missing parent directories. Blocks.
    pub fn create(&self) -> Result<(), Error> {
        let folder = self.data_dir();
        // `remove` deletes the parent directories that did not exist before.
        let missing = self.home.ancestors().take_while(|above| !above.exists()).map(Path::to_owned);
        let missing: Vec<PathBuf> = missing.filter(|above| !above.as_os_str().is_empty()).collect();
        create_private_dir(&folder)?;
        self.folders.lock().extend(missing.into_iter().chain([folder]));
        Ok(())
    }

    /// Removes the temporary directories with their contents, and parent directories that [`Self::create`] created if
    /// they are empty. The next call retries what could not be removed. Blocks.
    pub fn remove(&self) -> Result<(), Error> {
        let mut outcome = Ok(());
        let folders = std::mem::take(&mut *self.folders.lock());
        // Reverse order: subdirectories before their parents.
        for folder in folders.iter().rev() {
            let own = folder.file_name().is_some_and(|name| *name == *self.name);
            let removed = if own { std::fs::remove_dir_all(folder) } else { std::fs::remove_dir(folder) };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    self.folders.lock().insert(folder.clone());
                    if own {
                        outcome = Err(Error::new(error.kind(), format!("{}: {error}", folder.display())));
                    }
                }
                _ => {}
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
