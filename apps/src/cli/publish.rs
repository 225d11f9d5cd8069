//! `enjambre publish`

use std::path::PathBuf;

use clap::Args;
use enjambre_core::model::name::Name;
use enjambre_core::model::record::FileKind;

use super::Context;
use super::drive::{Ran, run_and_stay};
use super::output::{Stdout, note, plain, size};
use super::progress::Bar;
use crate::control::message::{Command, Event};
use crate::failure::Failure;
use crate::peer::Reach;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Publish under another name; for one PATH
    #[arg(long)]
    name: Option<String>,
    /// Copy the content into the library instead of linking the file
    #[arg(long)]
    store: bool,
    /// Let a tracker keep a copy, and wait until it does
    #[arg(long)]
    pin: bool,
    /// Go on offering it until stopped, where no peer runs
    #[arg(long)]
    serve: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { paths, name, store, pin, serve } = arguments;
    if name.is_some() && paths.len() > 1 {
        return Err(Failure::usage("--name gives one name, so it goes with one PATH only"));
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
            bar.show(&format!("a tracker fetches {}", plain(name.as_str())), done, total, None);
        }
        Event::Published { name, id, size: bytes, kind, version, new } => {
            let mark = if kind == FileKind::Collection { "/" } else { "" };
            let what = if new { "published" } else { "already published" };
            let text = format!("{what} {name}{mark} (version {version}, {})  {id}", size(bytes));
            bar.suspend(|| stdout.line(&text));
        }
        Event::Pinned { name } => bar.suspend(|| stdout.line(&format!("a tracker keeps a copy of {name}"))),
        Event::Warning { message } => bar.suspend(|| note(&format!("warning: {message}"))),
        _ => {}
    };
    let command = Command::Publish { paths, name, store, pin };
    let ran = run_and_stay(&context, command, Reach::Command, &mut show).await;
    bar.clear();
    if let Ran::Here(node) = ran? {
        if serve {
            match node.endpoints() {
                [] => note("warning: nothing is offered, because the port is taken"),
                endpoints => {
                    let places: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                    stdout.line(&format!("offering it on {} until stopped", places.join(", ")));
                }
            }
            context.stop.cancelled().await;
        } else if !pin {
            note("nobody serves it yet: start the peer, or publish with --serve or --pin");
        }
        node.stop().await;
    }
    stdout.end()
}
