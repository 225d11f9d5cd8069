//! From a path to something that can be told to trackers.

use std::path::Path;

use enjambre_core::library::library::Library;
use enjambre_core::model::name::Name;
use enjambre_core::model::record::Publication;

use crate::control::message::Events;
use crate::failure::Failure;

/// Puts a file or folder into the library, under `name` or that of the path.
pub(super) async fn publish(
    _library: &Library,
    path: &Path,
    name: Option<Name>,
    _store: bool,
    _events: &Events,
) -> Result<Publication, Failure> {
    let _name = match name {
        Some(name) => name,
        None => name_of(path)?,
    };
    Err(Failure::failed("not yet"))
}

fn name_of(path: &Path) -> Result<Name, Failure> {
    let name =
        path.file_name().ok_or_else(|| Failure::usage("it has no name of its own; give one with --name"))?;
    let name =
        name.to_str().ok_or_else(|| Failure::usage("its name is not UTF-8; give another with --name"))?;
    name.parse().map_err(|error| Failure::usage(format!("{error}; give another with --name")))
}
