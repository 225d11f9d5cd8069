//! `enjambre storage copy`: everything of a tracker or peer goes from one configured storage to another.
//!
//! What is copied is what the databases mean, so the backends may be any two. The target has a mark as long as the copy
//! is under way, and nothing else opens it. A copy that was cut off goes on when it is started again.

mod copying;
mod errors;
mod meter;

use std::path::{Path, PathBuf};

use clap::Args;
use enjambre_core::{catalogue, library};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::copying::Copying;
use self::errors::{failed, same_database};
use self::meter::Meter;
use super::databases::{self, Databases, Meaning};
use crate::cli::output::note;
use crate::config::load::{Loaded, Sources};
use crate::data_dir::DataDir;
use crate::failure::Failure;
use crate::node_key;
use crate::registry::Registry;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The configuration of the tracker or peer whose storage is copied
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The configuration of the same kind of node with the storage to copy to
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Read back and compare every record and piece instead of counting them
    #[arg(long)]
    verify: bool,
    /// Empty the target first, whatever it holds
    #[arg(long)]
    force: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(
    registry: &Registry,
    sources: &Sources,
    arguments: &Arguments,
    stop: CancellationToken,
) -> Result<(), Failure> {
    if sources.file.is_some() || !sources.set.is_empty() {
        let text =
            "--config and --set do not go with `storage copy`; --from and --to name the configurations";
        return Err(Failure::usage(text));
    }
    let load = |file: &Path| -> Result<Loaded, Failure> {
        let sources = Sources { file: Some(file.to_owned()), set: Vec::new() };
        let loaded = sources.load(None, &registry.backends())?;
        registry.check(&loaded)?;
        Ok(loaded)
    };
    let (from, to) = (load(&arguments.from)?, load(&arguments.to)?);
    if from.kind != to.kind {
        return Err(Failure::usage(
            "one of the configurations has a section [tracker] and the other one has not",
        ));
    }
    let mut meter = Meter::new(arguments.json);
    let copied = stop.run_until_cancelled(copy_all(registry, &from, &to, arguments, &mut meter)).await;
    meter.bar.clear();
    let interrupted = match meter.resumable {
        true => "interrupted; start it again and it goes on",
        false => "interrupted",
    };
    let copied = copied.unwrap_or_else(|| Err(Failure::failed(interrupted)));
    if let (Err(failure), true) = (&copied, arguments.json) {
        meter.stdout.json(&json!({ "event": "error", "message": failure.message }));
    }
    copied?;
    meter.stdout.end()
}

async fn copy_all(
    registry: &Registry,
    from: &Loaded,
    to: &Loaded,
    arguments: &Arguments,
    meter: &mut Meter,
) -> Result<(), Failure> {
    let source_dir = databases::own(from).await?;
    let target_dir = match is_same_folder(source_dir.path(), &to.data_dir(to.kind)) {
        true => None,
        false => Some(databases::own_or_make(to).await?),
    };
    let target_path = target_dir.as_ref().map_or(source_dir.path(), DataDir::path);
    if target_dir.is_none() && from.config.storage == to.config.storage {
        return Err(same_database());
    }
    let key = load_key(source_dir.path()).await?.ok_or_else(|| nothing_in(from))?;
    let theirs = load_key(target_path).await?;
    if theirs.as_ref().is_some_and(|theirs| theirs.peer_id() != key.peer_id()) {
        return Err(Failure::failed(format!(
            "{} belongs to a node with another key; choose another data_dir, or delete the file `key` in it if that \
             node is not needed any more",
            target_path.display()
        )));
    }
    let source = Databases::open(registry, from, source_dir.path(), false).await?;
    check_formats(from, &source).await?;
    let target = Databases::open(registry, to, target_path, true).await?;
    let name = blake3::Hasher::new()
        .update(key.peer_id().as_bytes())
        .update(from.config.storage.backend.as_bytes())
        .finalize();
    let mut copying = Copying::begin(&source, &target, name.as_bytes(), arguments.force, meter).await?;
    // Only now is it sure that the folder is the target's.
    if theirs.is_none() {
        let (folder, key) = (target_path.to_owned(), key.clone());
        crate::blocking(move || node_key::write(&folder, &key)).await?;
    }
    let copied = copying.copy().await?;
    copying.compare(&copied, arguments.verify).await?;
    copying.finish().await?;
    source.close().await?;
    target.close().await?;

    // Whether the target keeps what it is given shows when it is opened again.
    let again = Databases::open(registry, to, target_path, false).await?;
    let kept = check_formats(to, &again).await;
    again.close().await?;
    if kept.is_err() {
        let backend = &to.config.storage.backend;
        return Err(Failure::failed(format!(
            "the {backend} storage forgot everything when it was closed, so nothing is copied"
        )));
    }
    copied.tell(meter, arguments.verify);
    if target_dir.is_some() && !meter.json {
        let folder = target_path.display();
        note(&format!("the key came along: {folder} is the same node now, so start only one of the two"));
    }
    if copied.has_authority() {
        tell_of_swarm(to, &arguments.to, target_dir.is_some());
    }
    Ok(())
}

/// Who is in came along with who decides that.
fn tell_of_swarm(to: &Loaded, config: &Path, moved: bool) {
    if moved {
        note(
            "the swarm is by invitation and its authority came along: who is thrown out by one of the two is not thrown \
             out by the other, so delete the old database once the new one is good",
        );
    }
    if !to.is_by_invitation() {
        note(&format!(
            "the swarm of this catalogue is by invitation, and no tracker starts on it without swarm.admission = \
             \"invited\", which {} does not say",
            config.display()
        ));
    }
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    other.canonicalize().is_ok_and(|other| other == one)
}

fn nothing_in(loaded: &Loaded) -> Failure {
    let folder = loaded.data_dir(loaded.kind);
    let backend = &loaded.config.storage.backend;
    Failure::not_found(format!("there is nothing in the {backend} storage of {}", folder.display()))
}

async fn load_key(folder: &Path) -> Result<Option<enjambre_core::model::identity::KeyPair>, Failure> {
    let folder = folder.to_owned();
    crate::blocking(move || node_key::load(&folder)).await
}

/// Refuses a node of which the first database is empty, and formats other than this program's. Newer ones, and what a newer
/// program has begun to bring forward, cannot even be read.
async fn check_formats(loaded: &Loaded, databases: &Databases) -> Result<(), Failure> {
    for (number, database) in databases.all.iter().enumerate() {
        let reading = |error| failed(format!("the {} cannot be read", database.name), &error);
        let newest = match database.meaning {
            Meaning::Catalogue => catalogue::layout::FORMAT,
            Meaning::Index => library::FORMAT,
            Meaning::Content => continue,
        };
        match database.format().await.map_err(reading)? {
            None if number == 0 => return Err(nothing_in(loaded)),
            // What an older format looks like is known only to whoever brings it forward.
            Some(found) if found < newest => {
                return Err(Failure::failed(format!(
                    "the {} has the older format version {found}; start that node once with this program, which brings \
                     it to {newest}, and then copy",
                    database.name
                )));
            }
            _ => {}
        }
    }
    Ok(())
}
