//! The databases of a stopped tracker or peer.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use enjambre_core::{Place, Role, Space, Storage, StorageError};
use enjambre_swarm::library::content::ContentStore;
use enjambre_swarm::{catalogue, library};

use crate::cli::context::Context;
use crate::config::load::Loaded;
use crate::config::sections::{ContentKind, NodeKind};
use crate::data_dir::DataDir;
use crate::failure::{Failure, Status};
use crate::registry::Registry;
use crate::registry::locations::{node_place, replica_place};

/// The kind of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DatabaseKind {
    /// The catalogue of a tracker.
    Catalogue,
    /// The index of a library.
    Index,
    /// The content of a library.
    Content,
}

/// A database of a node.
#[derive(Debug)]
pub(super) struct Database {
    /// The name in text output.
    pub(super) name: &'static str,
    pub(super) kind: DatabaseKind,
    pub(super) place: Place,
    pub(super) role: Role,
    pub(super) storage: Arc<dyn Storage>,
}

impl Database {
    /// Returns the spaces of the database.
    pub(super) const fn spaces(&self) -> &'static [Space] {
        match self.kind {
            DatabaseKind::Catalogue => catalogue::layout::SPACES,
            DatabaseKind::Index => library::SPACES,
            DatabaseKind::Content => library::content::SPACES,
        }
    }

    /// Returns the format version. Returns `None` if the database is empty, and for content.
    pub(super) async fn format(&self) -> Result<Option<u64>, StorageError> {
        match self.kind {
            DatabaseKind::Catalogue => catalogue::stored_format(&*self.storage).await,
            DatabaseKind::Index => library::stored_format(&*self.storage).await,
            DatabaseKind::Content => Ok(None),
        }
    }
}

/// Locks the data directory of a stopped node. Fails if the directory does not exist.
pub(super) async fn lock(loaded: &Loaded) -> Result<DataDir, Failure> {
    let path = loaded.data_dir(loaded.kind);
    if !path.is_dir() {
        let text = format!(
            "data directory {} does not exist; no node was started with this configuration",
            path.display()
        );
        return Err(Failure::not_found(text));
    }
    lock_or_create(loaded).await
}

/// Like [`lock`], but creates a missing directory.
pub(super) async fn lock_or_create(loaded: &Loaded) -> Result<DataDir, Failure> {
    let path = loaded.data_dir(loaded.kind);
    let folder = path.clone();
    crate::blocking(move || DataDir::try_lock(&folder)).await?.ok_or_else(|| {
        let text = "is in use by a running tracker, peer or command; stop that process first";
        Failure::failed(format!("{} {text}", path.display()))
    })
}

/// All databases of a stopped node. The caller holds the lock of the data directory.
#[derive(Debug)]
pub(super) struct Databases {
    pub(super) all: Vec<Database>,
}

impl Databases {
    /// Opens all databases. If `allow_incomplete` is set, accepts the target of an incomplete copy.
    pub(super) async fn open(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: &Path,
        allow_incomplete: bool,
    ) -> Result<Self, Failure> {
        let mut all = Vec::new();
        for (name, kind, place, role) in places(loaded, data_dir) {
            let opened = match allow_incomplete {
                true => registry.open_incomplete(loaded, place.clone(), role).await,
                false => registry.open_storage(loaded, place.clone(), role).await,
            };
            match opened {
                Ok(storage) => all.push(Database { name, kind, place, role, storage }),
                Err(failure) => {
                    // The first failure is reported, because nothing was written.
                    let _ = Self { all }.close().await;
                    return Err(failure);
                }
            }
        }
        Ok(Self { all })
    }

    /// Returns the database of a kind, if the node has one.
    pub(super) fn find(&self, kind: DatabaseKind) -> Option<&Database> {
        self.all.iter().find(|database| database.kind == kind)
    }

    /// Returns the content store of the library, if the node has one.
    pub(super) fn content(&self) -> Option<ContentStore> {
        let index = self.find(DatabaseKind::Index)?;
        Some(match self.find(DatabaseKind::Content) {
            Some(content) => ContentStore::Database(Arc::clone(&content.storage)),
            None => ContentStore::Files(index.place.data_dir.join("content")),
        })
    }

    /// Closes all databases. Returns the first failure.
    pub(super) async fn close(self) -> Result<(), Failure> {
        let mut result = Ok(());
        for database in &self.all {
            let closed = database.storage.close().await.map_err(|error| {
                Failure::from_error(Status::Failed, &error)
                    .context(format!("cannot close the {} database", database.name))
            });
            result = result.and(closed);
        }
        result
    }
}

/// Opens the databases of a stopped node, passes them to `inspect`, and closes them.
pub(super) async fn inspect(
    context: &Context<'_>,
    inspect: impl AsyncFnOnce(&Databases) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let data_dir = lock(&context.loaded).await?;
    let databases = Databases::open(context.registry, &context.loaded, data_dir.path(), false).await?;
    let outcome = context.run(inspect(&databases)).await;
    databases.close().await?;
    outcome
}

/// Returns name, kind, place and role of each configured database.
fn places(loaded: &Loaded, data_dir: &Path) -> Vec<(&'static str, DatabaseKind, Place, Role)> {
    let uses_database = loaded.config.library.content == ContentKind::Database;
    let place = node_place(loaded.kind, data_dir);
    let mut places = Vec::new();
    match loaded.kind {
        NodeKind::Tracker => {
            places.push(("catalogue", DatabaseKind::Catalogue, place, Role::Records));
            if loaded.config.tracker.store.enabled {
                let place = replica_place(data_dir);
                places.push(("replica index", DatabaseKind::Index, place.clone(), Role::Records));
                if uses_database {
                    places.push(("replica content", DatabaseKind::Content, place, Role::Content));
                }
            }
        }
        NodeKind::Peer => {
            places.push(("index", DatabaseKind::Index, place.clone(), Role::Records));
            if uses_database {
                places.push(("content", DatabaseKind::Content, place, Role::Content));
            }
        }
    }
    places
}

/// Returns the directory of a database, if it consists of files on this machine. Detects them by their names, because
/// only the backend knows whether it stores files.
pub(super) fn folder_of(loaded: &Loaded, place: &Place, role: Role) -> Option<PathBuf> {
    let section = &loaded.config.storage;
    let table = section.table(&section.backend);
    let configured = table.get("path").and_then(toml::Value::as_str).map(Path::new);
    let path = place.database(configured, "any", role);
    let folder = path.parent()?;
    let stem = path.file_stem()?;
    let exists = folder.read_dir().ok()?.flatten().any(|entry| {
        let name = entry.file_name();
        Path::new(&name).file_stem() == Some(stem) || OsStr::new(&name) == stem
    });
    exists.then(|| folder.to_owned())
}
