//! The databases of a stopped tracker or peer.

use std::path::Path;
use std::sync::Arc;

use enjambre_control::{Failure, ResultContext};
use enjambre_core::{Place, Role, Space, Storage, StorageError};
use enjambre_swarm::library::content::ContentStore;
use enjambre_swarm::{catalogue, library};

use crate::cli::context::Context;
use crate::config::load::Loaded;
use crate::config::sections::{ContentKind, NodeKind};
use crate::data_dir::{DataDir, never_started};
use crate::registry::Registry;
use crate::registry::locations::{node_place, replica_place};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DatabaseKind {
    Catalogue,
    Index,
    Content,
}

#[derive(Debug)]
pub(super) struct Database {
    /// The name in text output.
    pub(super) name: &'static str,
    pub(super) kind: DatabaseKind,
    pub(super) place: Place,
    pub(super) storage: Arc<dyn Storage>,
}

impl DatabaseKind {
    pub(super) const fn role(self) -> Role {
        match self {
            Self::Catalogue | Self::Index => Role::Records,
            Self::Content => Role::Content,
        }
    }
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
        return Err(never_started(&path));
    }
    lock_or_create(loaded).await
}

/// Like [`lock`], but creates a missing directory.
pub(super) async fn lock_or_create(loaded: &Loaded) -> Result<DataDir, Failure> {
    let path = loaded.data_dir(loaded.kind);
    DataDir::try_lock(&path, loaded.group_access(loaded.kind)).await?.ok_or_else(|| {
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
        for (name, kind, place) in places(loaded, data_dir) {
            let opened = match allow_incomplete {
                true => registry.open_incomplete(loaded, place.clone(), kind.role()).await,
                false => registry.open_storage(loaded, place.clone(), kind.role()).await,
            };
            match opened {
                Ok(storage) => all.push(Database { name, kind, place, storage }),
                Err(failure) => {
                    // The first failure is reported, because nothing was written.
                    let _ = Self { all }.close().await;
                    return Err(failure);
                }
            }
        }
        Ok(Self { all })
    }

    /// Returns the database that every node of this kind has.
    pub(super) fn main(&self) -> &Database {
        self.all.first().expect("every node has a database")
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

    pub(super) async fn close(self) -> Result<(), Failure> {
        let mut result = Ok(());
        for database in &self.all {
            let closed = database.storage.close().await;
            result = result.and(closed.context(format!("cannot close the {} database", database.name)));
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

/// Returns name, kind and place of each configured database.
pub(super) fn places(loaded: &Loaded, data_dir: &Path) -> Vec<(&'static str, DatabaseKind, Place)> {
    let place = node_place(loaded.kind, data_dir);
    let replicas = replica_place(data_dir);
    let mut places = match loaded.kind {
        NodeKind::Tracker => vec![
            ("catalogue", DatabaseKind::Catalogue, place),
            ("replica index", DatabaseKind::Index, replicas.clone()),
            ("replica content", DatabaseKind::Content, replicas),
        ],
        NodeKind::Peer => {
            vec![("index", DatabaseKind::Index, place.clone()), ("content", DatabaseKind::Content, place)]
        }
    };
    let has_library = loaded.kind == NodeKind::Peer || loaded.config.tracker.store.enabled;
    let has_content = has_library && loaded.config.library.content == ContentKind::Database;
    places.retain(|(_, kind, _)| match kind {
        DatabaseKind::Catalogue => true,
        DatabaseKind::Index => has_library,
        DatabaseKind::Content => has_content,
    });
    places
}
