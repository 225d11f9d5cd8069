//! `enjambre publish`

use std::path::PathBuf;

use clap::Args;
use enjambre_core::{FileKind, Name};

use super::context::Context;
use super::output::{Stdout, notice, plain, size, warn};
use super::progress::Bar;
use super::runner::run_and_stay;
use crate::control::message::{Command, Event};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files and directories to publish
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Publish under this name instead of the file name; requires a single PATH
    #[arg(long)]
    name: Option<String>,
    /// Copy the content into the library instead of seeding the original file
    #[arg(long)]
    copy: bool,
    /// Store a replica on a tracker and wait until it is complete
    #[arg(long)]
    pin: bool,
    /// Keep seeding until interrupted; has no effect if a peer is running
    #[arg(long)]
    serve: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { paths, name, copy, pin, serve } = arguments;
    if name.is_some() && paths.len() > 1 {
        return Err(Failure::usage("--name requires a single PATH"));
    }
    let name = name.map(|name| name.parse::<Name>()).transpose().map_err(Failure::usage)?;
    let paths = paths.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>()?;
    let mut stdout = Stdout::default();
    let mut bar = Bar::new();
    let mut show = |event| match event {
        Event::Hashing { path, done, total } => {
            bar.show(&format!("reading {}", path.display()), done, total, None);
        }
        Event::Pinning { name, done, total } => {
            bar.show(&format!("replicating {}", plain(name.as_str())), done, total, None);
        }
        Event::Published { name, id, size: bytes, kind, version, new } => {
            let mark = if kind == FileKind::Collection { "/" } else { "" };
            let action = if new { "published" } else { "already published" };
            let text = format!("{action} {name}{mark} (version {version}, {})  {id}", size(bytes));
            bar.suspend(|| stdout.line(&text));
        }
        Event::Pinned { name } => {
            bar.suspend(|| stdout.line(&format!("replica of {name} stored on a tracker")));
        }
        Event::Warning { message } => bar.suspend(|| warn(&message)),
        _ => {}
    };
    let command = Command::Publish { paths, name, store: copy, pin };
    let node = run_and_stay(&context, command, &mut show).await;
    bar.clear();
    if let Some(node) = node? {
        if serve {
            match node.endpoints() {
                [] => warn("the files are not seeded because the port is in use"),
                endpoints => {
                    let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                    stdout.line(&format!("seeding on {} until interrupted", endpoints.join(", ")));
                }
            }
            context.stop.cancelled().await;
        } else if !pin {
            notice("no peer seeds the files yet: run `enjambre peer`, or publish with --serve or --pin");
        }
        node.stop().await;
    }
    stdout.finish()
}
