//! `enjambre config`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use enjambre_control::Failure;
use enjambre_core::Role;

use super::output::Stdout;
use crate::config::load::Sources;
#[cfg(feature = "http")]
use crate::http::Files;
use crate::registry::Registry;
use crate::registry::locations::node_place;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print all effective values and their origins
    Show {
        /// Configuration file, same as --config
        file: Option<PathBuf>,
    },
    /// Check whether the configuration is valid, and the files that it names
    Check {
        /// Configuration file, same as --config
        file: Option<PathBuf>,
    },
}

pub(super) async fn run(
    registry: &Registry,
    mut sources: Sources,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let (Action::Show { file } | Action::Check { file }) = &arguments.action;
    if let Some(file) = file {
        sources.file = Some(file.clone());
    }
    let loaded = registry.load(&sources, None)?;
    let mut stdout = Stdout::default();
    match arguments.action {
        Action::Show { .. } => loaded.show().lines().for_each(|line| stdout.line(line)),
        Action::Check { .. } => {
            #[cfg(feature = "http")]
            {
                let loaded = loaded.clone();
                crate::blocking(move || Ok(Files::read(&loaded).map(drop)?)).await?;
            }
            let place = node_place(loaded.kind, &loaded.data_dir(loaded.kind));
            registry.check_files(&loaded, place, Role::Records).await?;
            let name = loaded
                .file
                .as_ref()
                .map_or_else(|| "configuration".to_owned(), |file| file.display().to_string());
            stdout.line(&format!("{name} is valid"));
        }
    }
    stdout.finish()
}
