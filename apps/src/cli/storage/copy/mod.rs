//! `enjambre storage copy`: copies all data of a tracker or peer to another storage.
//!
//! The copy works on records, so that the backends can differ. The target contains a mark until the copy is complete, and
//! no node opens it. An interrupted copy resumes when the command is run again.

mod copier;
mod errors;
mod progress;

use std::path::{Path, PathBuf};

use clap::Args;
use enjambre_control::{Failure, ResultContext};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::copier::{Copier, is_same_folder};
use self::errors::same_database;
use self::progress::CopyProgress;
use super::databases::{self, Databases};
use crate::cli::output::notice;
use crate::config::load::{Loaded, Sources};
use crate::data_dir::DataDir;
use crate::known_database;
use crate::node_key;
use crate::registry::Registry;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Configuration file of the tracker or peer to copy from
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Configuration file of a node of the same kind to copy to
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Compare every record and piece after the copy, instead of counting them
    #[arg(long)]
    verify: bool,
    /// Delete all data in the target first
    #[arg(long)]
    force: bool,
    /// Print one JSON object per line
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
        let text = "--config and --set cannot be used with `storage copy`; specify --from and --to instead";
        return Err(Failure::usage(text));
    }
    let load = |file: &Path| -> Result<Loaded, Failure> {
        let sources = Sources { file: Some(file.to_owned()), set: Vec::new() };
        Ok(registry.load(&sources, None)?)
    };
    let (from, to) = (load(&arguments.from)?, load(&arguments.to)?);
    if from.kind != to.kind {
        return Err(Failure::usage(
            "source and target must be nodes of the same kind; only one of the configurations has a section [tracker]",
        ));
    }
    let mut progress = CopyProgress::new(arguments.json);
    let copied = stop.run_until_cancelled(copy_all(registry, &from, &to, arguments, &mut progress)).await;
    progress.bar.clear();
    let interrupted = match progress.resumable {
        true => "interrupted; run the command again to resume the copy",
        false => "interrupted",
    };
    let copied = copied.unwrap_or_else(|| Err(Failure::interrupted(interrupted)));
    if let (Err(failure), true) = (&copied, arguments.json) {
        progress.stdout.json(&json!({ "event": "error", "message": failure.message }));
    }
    copied?;
    progress.stdout.finish()
}

async fn copy_all(
    registry: &Registry,
    from: &Loaded,
    to: &Loaded,
    arguments: &Arguments,
    progress: &mut CopyProgress,
) -> Result<(), Failure> {
    let source_dir = databases::lock(from).await?;
    let target_dir = match is_same_folder(source_dir.path(), &to.data_dir(to.kind)) {
        true => None,
        false => Some(databases::lock_or_create(to).await?),
    };
    let target_path = target_dir.as_ref().map_or(source_dir.path(), DataDir::path);
    if target_dir.is_none() && from.config.storage == to.config.storage {
        return Err(same_database());
    }
    let key = node_key::load(source_dir.path()).await?.ok_or_else(|| empty_source(from))?;
    let target_key = node_key::find(target_path).await?;
    if target_key.as_ref().is_some_and(|target_key| target_key.peer_id() != key.peer_id()) {
        return Err(Failure::failed(format!(
            "target directory {} belongs to a node with another key; choose another data_dir, or delete the file `key` in it \
             if that node is no longer needed",
            target_path.display()
        )));
    }
    let source = Databases::open(registry, from, source_dir.path(), false).await?;
    check_not_empty(from, &source).await?;
    let target = Databases::open(registry, to, target_path, true).await?;
    let name = blake3::Hasher::new()
        .update(key.peer_id().as_bytes())
        .update(from.config.storage.backend.as_bytes())
        .finalize();
    let mut copier = Copier::begin(&source, &target, name.as_bytes(), arguments.force, progress).await?;
    // The target has been checked, so the directory can take the key.
    if target_key.is_none() {
        node_key::write(target_path, &key).await?;
    }
    let copied = copier.copy().await?;
    copier.compare(&copied, arguments.verify).await?;
    copier.finish().await?;
    source.close().await?;
    target.close().await?;

    // Detects a target that does not keep its data, such as the memory backend.
    let again = Databases::open(registry, to, target_path, false).await?;
    let checked = check_not_empty(to, &again).await;
    let recorded = match checked {
        // With the same directory, the node refuses the source from now on.
        Ok(()) => {
            known_database::record(target_path, &*again.main().storage, &to.config.storage.backend).await
        }
        Err(_) => Ok(()),
    };
    again.close().await?;
    recorded?;
    if checked.is_err() {
        let backend = &to.config.storage.backend;
        return Err(Failure::failed(format!(
            "the {backend} storage does not keep its data after it is closed; nothing was copied"
        )));
    }
    copied.report(progress, arguments.verify);
    if target_dir.is_some() && !progress.json {
        let folder = target_path.display();
        notice(&format!(
            "the node key was copied: {folder} is now the same node as the source; run only one of the two"
        ));
    }
    if target_dir.is_none() && from.config.storage.backend == to.config.storage.backend {
        notice(
            "the node does not recognize the source as outdated, because it has the same backend as the copy; delete it \
             when the copy is in use",
        );
    }
    if copied.has_authority() && target_dir.is_some() {
        notice(
            "the swarm is invite-only and its authority was copied: a revocation on one of the two databases does not apply to \
             the other; delete the old database when the new one is in use",
        );
    }
    if copied.has_authority() && !to.is_invite_only() {
        notice(&format!(
            "the swarm of this catalogue is invite-only, and a tracker requires swarm.admission = \"invite\" to start with it; set \
             it in {}",
            arguments.to.display()
        ));
    }
    Ok(())
}

fn empty_source(loaded: &Loaded) -> Failure {
    let folder = loaded.data_dir(loaded.kind);
    let backend = &loaded.config.storage.backend;
    Failure::not_found(format!("the {backend} storage of {} is empty", folder.display()))
}

/// Rejects a node whose main database is empty. Fails if a database has an unsupported format.
async fn check_not_empty(loaded: &Loaded, databases: &Databases) -> Result<(), Failure> {
    for database in &databases.all {
        let format = database.format().await;
        let format = format.context(format!("cannot read the {} database", database.name))?;
        if format.is_none() && database.kind == databases.main().kind {
            return Err(empty_source(loaded));
        }
    }
    Ok(())
}
