//! The places of the databases of a node.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use enjambre_control::Failure;
use enjambre_core::{Place, Role, Scratch, Tenancy};

use crate::config::load::Loaded;
use crate::config::sections::NodeKind;

/// The place of the main databases of a node.
pub(crate) fn node_place(kind: NodeKind, data_dir: &Path) -> Place {
    Place::new(data_dir, tenancy(kind))
}

/// The place of the databases for the replicas of a tracker.
pub(crate) fn replica_place(data_dir: &Path) -> Place {
    Place::new(data_dir.join("store"), Tenancy::PerFolder)
}

/// A temporary place with the tenancy of the main databases.
pub(crate) fn scratch_place(kind: NodeKind, scratch: Scratch) -> Place {
    Place::temporary(scratch, tenancy(kind))
}

/// Returns the directory of a database, if it consists of files on this machine. Detects them by their names, because
/// only the backend knows whether it stores files.
pub(crate) async fn folder_of(
    loaded: &Loaded,
    place: &Place,
    role: Role,
) -> Result<Option<PathBuf>, Failure> {
    let section = &loaded.config.storage;
    let table = section.table(&section.backend);
    let configured = table.get("path").and_then(toml::Value::as_str).map(Path::new);
    let path = place.database(configured, "any", role);
    let find = move || {
        let (folder, stem) = (path.parent()?, path.file_stem()?);
        let exists = folder.read_dir().ok()?.flatten().any(|entry| {
            let name = entry.file_name();
            Path::new(&name).file_stem() == Some(stem) || OsStr::new(&name) == stem
        });
        exists.then(|| folder.to_owned())
    };
    crate::blocking(move || Ok(find())).await
}

const fn tenancy(kind: NodeKind) -> Tenancy {
    match kind {
        NodeKind::Tracker => Tenancy::Shared,
        NodeKind::Peer => Tenancy::Single,
    }
}
