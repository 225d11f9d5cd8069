//! The databases of a configured tracker or peer, opened while the node itself is stopped.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use enjambre_core::library::content::ContentStore;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::Space;
use enjambre_core::storage::{Role, Storage};
use enjambre_core::{catalogue, library};

use crate::config::load::Loaded;
use crate::config::sections::{ContentKind, NodeKind};
use crate::data_dir::DataDir;
use crate::failure::{Failure, Status};
use crate::registry::{Place, Registry};

/// What a database means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// What a tracker knows.
    Catalogue,
    /// What a library has.
    Index,
    /// The content of a library.
    Content,
}

/// One database of a node.
#[derive(Debug)]
pub(super) struct Database {
    /// What people call it.
    pub(super) name: &'static str,
    pub(super) meaning: Meaning,
    pub(super) place: Place,
    pub(super) storage: Arc<dyn Storage>,
}

impl Database {
    /// The spaces that it may have.
    pub(super) const fn spaces(&self) -> &'static [Space] {
        match self.meaning {
            Meaning::Catalogue => catalogue::layout::SPACES,
            Meaning::Index => library::SPACES,
            Meaning::Content => library::content::SPACES,
        }
    }

    /// The format of what it holds; none where that is nothing, or content, which has none.
    pub(super) async fn format(&self) -> Result<Option<u64>, StorageError> {
        match self.meaning {
            Meaning::Catalogue => catalogue::stored_format(&*self.storage).await,
            Meaning::Index => library::stored_format(&*self.storage).await,
            Meaning::Content => Ok(None),
        }
    }
}

/// Becomes the owner of the data folder of a node that is stopped and has run before.
pub(super) async fn own(loaded: &Loaded) -> Result<DataDir, Failure> {
    let path = loaded.data_dir(loaded.kind);
    if !path.is_dir() {
        let text =
            format!("there is no data folder {}; nothing was stored with this configuration", path.display());
        return Err(Failure::not_found(text));
    }
    own_or_make(loaded).await
}

/// As [`own`], but makes the folder where it is missing.
pub(super) async fn own_or_make(loaded: &Loaded) -> Result<DataDir, Failure> {
    let path = loaded.data_dir(loaded.kind);
    let owned = path.clone();
    crate::blocking(move || DataDir::try_own(&owned)).await?.ok_or_else(|| {
        let text = "is in use by a running tracker, peer or command; stop it first";
        Failure::failed(format!("{} {text}", path.display()))
    })
}

/// All databases of a node that is stopped. The caller owns the data folder.
#[derive(Debug)]
pub(super) struct Databases {
    pub(super) all: Vec<Database>,
}

impl Databases {
    /// Opens all databases; also those of an unfinished copy, where `unfinished` says so.
    pub(super) async fn open(
        registry: &Registry,
        loaded: &Loaded,
        data_dir: &Path,
        unfinished: bool,
    ) -> Result<Self, Failure> {
        let mut all = Vec::new();
        for (name, meaning, place) in places(loaded, data_dir) {
            let opened = match unfinished {
                true => registry.open_unfinished(loaded, place.clone()).await,
                false => registry.open_storage(loaded, place.clone()).await,
            };
            match opened {
                Ok(storage) => all.push(Database { name, meaning, place, storage }),
                Err(failure) => {
                    // Nothing was written, so the first failure is the one to tell.
                    let _ = Self { all }.close().await;
                    return Err(failure);
                }
            }
        }
        Ok(Self { all })
    }

    /// The database with this meaning, if there is one.
    pub(super) fn with(&self, meaning: Meaning) -> Option<&Database> {
        self.all.iter().find(|database| database.meaning == meaning)
    }

    /// Where the content of the library is; none where there is no library.
    pub(super) fn content(&self) -> Option<ContentStore> {
        let index = self.with(Meaning::Index)?;
        Some(match self.with(Meaning::Content) {
            Some(content) => ContentStore::Database(Arc::clone(&content.storage)),
            None => ContentStore::Files(index.place.data_dir.join("content")),
        })
    }

    /// Closes all of them; the first failure is told.
    pub(super) async fn close(self) -> Result<(), Failure> {
        let mut result = Ok(());
        for database in &self.all {
            let closed = database.storage.close().await.map_err(|error| {
                Failure::from_error(Status::Failed, &error)
                    .context(format!("the {} was not closed in order", database.name))
            });
            result = result.and(closed);
        }
        result
    }
}

/// Where the databases of a node are, by what is configured.
fn places(loaded: &Loaded, data_dir: &Path) -> Vec<(&'static str, Meaning, Place)> {
    let kind = loaded.kind;
    let place = |store: bool, role| {
        let data_dir = if store { data_dir.join("store") } else { data_dir.to_owned() };
        Place { data_dir, kind, store, role, scratch: None }
    };
    let in_database = loaded.config.library.content == ContentKind::Database;
    let mut places = Vec::new();
    match kind {
        NodeKind::Tracker => {
            places.push(("catalogue", Meaning::Catalogue, place(false, Role::Records)));
            if loaded.config.tracker.store.enabled {
                places.push(("index of the copies", Meaning::Index, place(true, Role::Records)));
                if in_database {
                    places.push(("content of the copies", Meaning::Content, place(true, Role::Content)));
                }
            }
        }
        NodeKind::Peer => {
            places.push(("index", Meaning::Index, place(false, Role::Records)));
            if in_database {
                places.push(("content", Meaning::Content, place(false, Role::Content)));
            }
        }
    }
    places
}

/// The folder with the files of a database, where it has files on this machine. Only the backend knows; this is told by
/// what is there.
pub(super) fn folder_of(loaded: &Loaded, place: &Place) -> Option<PathBuf> {
    let section = &loaded.config.storage;
    let table = section.table(&section.backend);
    let configured = table.get("path").and_then(toml::Value::as_str).map(Path::new);
    let path = place.database(configured, "any");
    let folder = path.parent()?;
    let wanted = path.file_stem()?;
    let found = folder.read_dir().ok()?.flatten().any(|entry| {
        let name = entry.file_name();
        Path::new(&name).file_stem() == Some(wanted) || OsStr::new(&name) == wanted
    });
    found.then(|| folder.to_owned())
}
