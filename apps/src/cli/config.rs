//! `enjambre config`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::Stdout;
use crate::config::load::Sources;
use crate::failure::Failure;
use crate::registry::Registry;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print every value that is in effect, and where it came from
    Show {
        /// The configuration file, as with --config
        file: Option<PathBuf>,
    },
    /// Say whether the configuration can be used
    Check {
        /// The configuration file, as with --config
        file: Option<PathBuf>,
    },
}

pub(super) fn run(registry: &Registry, mut sources: Sources, arguments: &Arguments) -> Result<(), Failure> {
    let (Action::Show { file } | Action::Check { file }) = &arguments.action;
    if let Some(file) = file {
        sources.file = Some(file.clone());
    }
    let loaded = sources.load(None, &registry.backends())?;
    registry.check(&loaded)?;
    let mut stdout = Stdout::default();
    match arguments.action {
        Action::Show { .. } => stdout.line(loaded.show().trim_end()),
        Action::Check { .. } => {
            let what = loaded
                .file
                .as_ref()
                .map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string());
            stdout.line(&format!("{what} can be used"));
        }
    }
    stdout.end()
}
