//! `enjambre storage compact`: returns the space of removed data to the file system.

use enjambre_control::Failure;

use super::databases::{lock, places};
use crate::cli::context::Context;
use crate::cli::output::{Stdout, size};

pub(super) async fn run(context: Context<'_>) -> Result<(), Failure> {
    let loaded = &context.loaded;
    let data_dir = lock(loaded).await?;
    let mut stdout = Stdout::default();
    for (name, kind, place) in places(loaded, data_dir.path()) {
        let Some(freed) = context.registry.compact(loaded, place, kind.role()).await? else {
            let backend = &loaded.config.storage.backend;
            return Err(Failure::usage(format!("a database of the backend {backend} cannot be compacted")));
        };
        stdout.line(&format!("{name}: {} returned to the file system", size(freed)));
    }
    stdout.finish()
}
