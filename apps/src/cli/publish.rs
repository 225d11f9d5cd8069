//! `enjambre publish`

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use enjambre_control::{CONTENT_BYTES, Command, Event, Failure, Input, Published};
use enjambre_core::model::endpoint;
use enjambre_core::{FileKind, Name};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::context::Context;
use super::output::{Stdout, notice, size, warn};
use super::progress::Bar;
use super::runner::run_and_stay;
use super::streams::{is_descriptor, is_stdin};

/// Number of parts of the standard input that are read ahead.
const QUEUED: usize = 16;

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
    let Arguments { paths, name, copy, strict, exclude, pin, serve } = arguments;
    if name.is_some() && paths.len() > 1 {
        return Err(Failure::usage("--name requires a single PATH"));
    }
    let name = name.map(|name| name.parse::<Name>()).transpose().map_err(Failure::usage)?;
    let (command, input) = if paths.iter().any(|path| is_stdin(path)) {
        let Some(name) = name else {
            return Err(Failure::usage("publishing the standard input requires --name and no other PATH"));
        };
        (Command::PublishInput { name, size: None, pin }, Some(stdin()))
    } else if let Some(path) = paths.iter().find(|path| is_descriptor(path)) {
        return Err(Failure::usage(format!(
            "{} is an open file of this command; to publish its content, use `publish - --name NAME` and redirect the \
             standard input",
            path.display()
        )));
    } else {
        let paths = paths.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>()?;
        (Command::Publish { paths, name, store: copy, pin, strict, exclude }, None)
    };
    let mut stdout = Stdout::default();
    let mut bar = Bar::new();
    let mut show = |event| match event {
        Event::Hashing { path, done, total } => {
            bar.show(&format!("reading {}", path.display()), done, total.max(done), None);
        }
        Event::Pinning { name, done, total } => {
            bar.show(&format!("replicating {name}"), done, total, None);
        }
        Event::Published(Published { name, id, size: bytes, kind, version, new }) => {
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
    let node = run_and_stay(&context, command, input, &mut show).await;
    bar.clear();
    if let Some(node) = node? {
        if serve {
            match node.endpoints() {
                [] => warn("the files are not seeded because the port is in use"),
                endpoints => {
                    stdout.line(&format!("seeding on {} until interrupted", endpoint::list(endpoints)));
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

/// Reads the standard input in a blocking thread.
fn stdin() -> Input {
    let (sender, input) = mpsc::channel(QUEUED);
    spawn_blocking(move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut part = vec![0; CONTENT_BYTES];
            let read = match stdin.read(&mut part) {
                Ok(length) => {
                    part.truncate(length);
                    Ok(part)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let text = format!("cannot read the standard input: {error}");
                    Err(io::Error::new(error.kind(), text))
                }
            };
            let is_last = read.as_ref().map_or(true, Vec::is_empty);
            // The command may have failed.
            if sender.blocking_send(read).is_err() || is_last {
                return;
            }
        }
    });
    input
}
