//! `enjambre get`

use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use enjambre_control::{Command, Event, Failure, Output, ResultContext};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::output::{Stdout, notice, rate, size, warn};
use super::progress::Bar;
use super::runner;
use super::streams::{is_descriptor, is_stdout};
use crate::display::count;

/// Number of content events that can wait for the consumer of a stream.
const QUEUED: usize = 16;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name (selects its newest version), id, or a prefix of an id with at least 8 digits; for a part of a directory
    /// followed by / and its path
    #[arg(required = true, value_name = "NAME|ID")]
    queries: Vec<String>,
    /// Write the download to PATH, or into the directory PATH if it ends with /, and seed it from there, instead of
    /// storing it in the library; a file is written into an existing directory, too; a file that is already complete stays
    /// where it is, and PATH becomes a copy; with -, a device or a pipe, also write the stored file there
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Replace existing files at PATH; pieces of an older version are used
    #[arg(long)]
    force: bool,
    /// List the files of a directory instead of downloading them
    #[arg(long, conflicts_with_all = ["output", "force", "sync"])]
    list: bool,
    /// Sync the content to disk before returning
    #[arg(long)]
    sync: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { queries, output, force, list, sync, json } = arguments;
    if list {
        return print_contents(&context, queries, json).await;
    }
    let (output, stream) = match output {
        Some(path) => destination(&path, queries.len() > 1).await?,
        None => (Output::Library, None),
    };
    if json && output == Output::Client {
        return Err(Failure::usage("--json cannot be used with the content of a file on a stream"));
    }
    let mut stdout = Stdout::default();
    let mut bar = if json { Bar::hidden() } else { Bar::new() };
    let label = queries.join(" ");
    let mut problem = None;
    let mut show = |event| match event {
        Event::Complete { path: Some(path), inode, .. } if !is_visible(&path, inode) => {
            problem = Some(Failure::failed(format!(
                "the peer wrote {}, but this command does not see it there: it was moved or deleted, or the peer has other \
                 mounts, as in a container",
                path.display()
            )));
        }
        event @ (Event::Progress { .. } | Event::Complete { .. } | Event::Directory { .. }) if json => {
            stdout.json(&event);
        }
        Event::Progress { done, total, providers } => {
            bar.show(&label, done, total, Some(providers));
        }
        Event::Directory { name, files, bytes, hidden, first_hidden } => {
            let text = format!("{name}/: {}, {}", count(files, "file"), size(bytes));
            let paths = first_hidden.join(", ");
            bar.suspend(|| match hidden {
                0 => notice(&text),
                _ => warn(&format!("{text}, {hidden} of them hidden: {paths}")),
            });
        }
        Event::Content { data } => {
            if let (Some(to), None) = (&stream, &problem) {
                match STANDARD.decode(data) {
                    Ok(data) => to.write(data, &context.stop),
                    Err(error) => problem = Some(Failure::failed(error)),
                }
            }
        }
        Event::Complete { name, subdirectory, id, path, bytes, received, seconds, .. } => {
            let name = subdirectory.map_or_else(|| name.to_string(), |part| format!("{name}/{part}"));
            let place = path.map_or_else(|| "library".to_owned(), |path| path.display().to_string());
            let text = match received {
                0 => format!("{name}: already complete, {place} ({})  {id}", size(bytes)),
                _ => {
                    let rate = rate(received, seconds);
                    let received = if received < bytes {
                        format!(", {} of it new", size(received))
                    } else {
                        String::new()
                    };
                    format!("{name}: {place} ({}{received} in {seconds:.1} s, {rate})  {id}", size(bytes))
                }
            };
            bar.suspend(|| if stream.is_some() { notice(&text) } else { stdout.line(&text) });
        }
        Event::Warning { message } => bar.suspend(|| warn(&message)),
        _ => {}
    };
    let command = Command::Get { queries, output, force, sync };
    let result = runner::run(&context, command, &mut show).await;
    let written = match stream {
        Some(stream) => context.run(stream.finish()).await,
        None => Ok(()),
    };
    bar.clear();
    let result = result.and(written).and(problem.map_or(Ok(()), Err));
    if let (Err(failure), true) = (&result, json) {
        stdout.json(&json!({ "event": "error", "message": failure.message }));
    }
    result?;
    stdout.finish()
}

/// A stream to which a blocking thread writes the content of files, so that a signal interrupts the command while the
/// consumer of the stream pauses.
struct Stream {
    queue: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<Result<(), Failure>>,
}

impl Stream {
    fn new(mut to: impl Write + Send + 'static) -> Self {
        let (queue, mut content) = mpsc::channel::<Vec<u8>>(QUEUED);
        let writer = spawn_blocking(move || {
            while let Some(data) = content.blocking_recv() {
                match to.write_all(&data).and_then(|()| to.flush()) {
                    // A closed pipe (`| head`) is not an error.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                    written => written.map_err(Failure::from).context("cannot write the content")?,
                }
            }
            Ok(())
        });
        Self { queue, writer }
    }

    /// Passes content to the thread. Blocks while the queue is full, until `stop` is cancelled. Content after a failed
    /// write is discarded.
    fn write(&self, data: Vec<u8>, stop: &CancellationToken) {
        let send = stop.run_until_cancelled(self.queue.send(data));
        let _ = block_in_place(|| Handle::current().block_on(send));
    }

    /// Waits until the content is written.
    async fn finish(self) -> Result<(), Failure> {
        drop(self.queue);
        self.writer.await.unwrap_or_else(|error| Err(Failure::failed(format!("internal error: {error}"))))
    }
}

/// Interprets the argument of `--output`.
async fn destination(path: &Path, several: bool) -> Result<(Output, Option<Stream>), Failure> {
    if is_stdout(path) {
        return Ok((Output::Client, Some(Stream::new(std::io::stdout()))));
    }
    let found = tokio::fs::metadata(path).await;
    if found.is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let opened = tokio::fs::OpenOptions::new().write(true).open(path).await;
        let file = opened.context(format!("cannot open {}", path.display()))?;
        return Ok((Output::Client, Some(Stream::new(file.into_std().await))));
    }
    if is_descriptor(path) {
        // A file that is opened again has an offset of its own: later writes to the open file would overwrite the content.
        return Err(Failure::usage(format!(
            "{} is neither a device nor a pipe; to write to an open file, use `-o -` and redirect the standard \
             output",
            path.display()
        )));
    }
    let into = several || path.as_os_str().as_bytes().ends_with(b"/");
    Ok((Output::Path { path: std::path::absolute(path)?, into }, None))
}

/// Whether this process sees the file that the peer wrote.
fn is_visible(path: &Path, inode: Option<u64>) -> bool {
    std::fs::metadata(path).is_ok_and(|found| inode == Some(found.ino()))
}

async fn print_contents(context: &Context<'_>, queries: Vec<String>, json: bool) -> Result<(), Failure> {
    // For people only: scripts read lines of files.
    let mut needs_header = std::io::stdout().is_terminal();
    for query in queries {
        runner::print(context, Command::Contents { query }, |stdout, event| match event {
            event @ Event::DirectoryEntry { .. } if json => stdout.json(&event),
            Event::DirectoryEntry { path, size: bytes, executable } => {
                if std::mem::take(&mut needs_header) {
                    stdout.line(&format!("{:>10}  PATH (* executable)", "SIZE"));
                }
                let mark = if executable { "*" } else { "" };
                stdout.line(&format!("{:>10}  {}{mark}", size(bytes), path));
            }
            _ => {}
        })
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn blocked_stream_can_be_interrupted() {
        let (writer, reader) = UnixStream::pair().unwrap();
        let (stream, stop) = (Stream::new(writer), CancellationToken::new());
        let signal = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            signal.cancel();
        });
        while !stop.is_cancelled() {
            stream.write(vec![0; 64 << 10], &stop);
        }
        drop(reader);
        assert_eq!(stream.finish().await, Ok(()), "a closed pipe is not an error");
    }

    #[test]
    fn other_or_missing_file_is_not_visible() {
        let dir = tempfile::tempdir().unwrap();
        let (written, other) = (dir.path().join("written"), dir.path().join("other"));
        std::fs::write(&written, "content").unwrap();
        std::fs::write(&other, "content").unwrap();
        let inode = std::fs::metadata(&written).unwrap().ino();
        assert!(is_visible(&written, Some(inode)));
        assert!(!is_visible(&other, Some(inode)), "another mount has another file there");
        assert!(!is_visible(&dir.path().join("missing"), Some(inode)));
    }
}
