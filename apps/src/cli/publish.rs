//! `enjambre publish`

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use enjambre_core::{FileKind, Name, runtime};
use tempfile::NamedTempFile;

use super::context::Context;
use super::output::{Stdout, notice, size, warn};
use super::progress::Bar;
use super::runner::run_and_stay;
use crate::control::message::{Command, Event};
use crate::failure::{Failure, ResultContext};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files and directories to publish; - publishes the standard input, which requires --name
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Publish under this name instead of the file name; requires a single PATH
    #[arg(long)]
    name: Option<String>,
    /// Copy the content into the library instead of seeding the original file
    #[arg(long)]
    copy: bool,
    /// Fail if a directory contains an entry that cannot be published, instead of skipping it
    #[arg(long)]
    strict: bool,
    /// Leave out entries of a directory with this name, or with this path relative to it; `*` and `?` are wildcards
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Store a replica on a tracker and wait until it is complete
    #[arg(long)]
    pin: bool,
    /// Keep seeding until interrupted; has no effect if a peer is running
    #[arg(long)]
    serve: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { mut paths, name, mut copy, strict, exclude, pin, serve } = arguments;
    if name.is_some() && paths.len() > 1 {
        return Err(Failure::usage("--name requires a single PATH"));
    }
    let name = name.map(|name| name.parse::<Name>()).transpose().map_err(Failure::usage)?;
    // Deleted on return.
    let mut spooled = None;
    if paths.iter().any(|path| path == Path::new("-")) {
        if name.is_none() {
            return Err(Failure::usage("publishing the standard input requires --name and no other PATH"));
        }
        let file = context.run(spool_stdin()).await?;
        paths = vec![file.path().to_owned()];
        copy = true;
        spooled = Some(file);
    }
    let paths = paths.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>()?;
    let mut stdout = Stdout::default();
    let mut bar = Bar::new();
    let mut show = |event| match event {
        Event::Hashing { path, done, total } => {
            bar.show(&format!("reading {}", path.display()), done, total, None);
        }
        Event::Pinning { name, done, total } => {
            bar.show(&format!("replicating {name}"), done, total, None);
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
    let command = Command::Publish { paths, name, store: copy, pin, strict, exclude };
    let node = run_and_stay(&context, command, &mut show).await;
    bar.clear();
    drop(spooled);
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

/// Copies the standard input to a temporary file, since its size and hash must be known before it is published.
async fn spool_stdin() -> Result<NamedTempFile, Failure> {
    let copied = runtime::spawn_blocking(|| {
        let mut file = NamedTempFile::new()?;
        io::copy(&mut io::stdin().lock(), &mut file)?;
        Ok::<_, io::Error>(file)
    });
    let copied = copied.await.map_err(io::Error::other).and_then(|copied| copied);
    copied.context("cannot copy the standard input to a temporary file")
}
