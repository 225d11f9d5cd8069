//! `enjambre demo`: a tracker and three peers on this machine, one of which fails during a download.

mod node;
mod sample;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use enjambre_control::{Command, Event, Failure, Output, Published, ResultContext};
use enjambre_core::{FileKind, Name};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::output::{Stdout, notice, rate, size};
use super::progress::Bar;
use crate::display::count;
use node::Node;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// File or directory to publish [default: a file with 256 MiB of random data]
    path: Option<PathBuf>,
    /// Listen for browsers, slow the transfer down, and keep running until interrupted
    #[arg(long)]
    http: bool,
}

/// Minimum duration of the second download, so that a peer can fail halfway.
const SLOW_DOWNLOAD_SECONDS: u64 = 4;
/// The same with `--http`, so that people can watch it.
const WATCHED_DOWNLOAD_SECONDS: u64 = 60;

/// Runs the demonstration in a temporary directory. All processes end with this call.
pub(super) async fn run(arguments: &Arguments, stop: CancellationToken) -> Result<(), Failure> {
    if let Some(path) = &arguments.path {
        let found = tokio::fs::metadata(path).await;
        found.context(format!("cannot publish {}", path.display()))?;
    }
    let folder = tempfile::Builder::new().prefix("enjambre-demo-").tempdir()?;
    let mut nodes = Vec::new();
    let root = folder.path().canonicalize()?;
    let result = stop.run_until_cancelled(show(arguments, &root, &mut nodes)).await;
    let result = result.unwrap_or_else(|| Err(Failure::interrupted("interrupted")));
    if result.is_ok() && arguments.http {
        Stdout::default().line("the nodes run until you press Ctrl-C");
        stop.cancelled().await;
    }
    let mut stdout = Stdout::default();
    if let Err(failure) = &result
        && !stop.is_cancelled()
    {
        notice(&format!("demo failed: {failure}; last lines of the logs:"));
        nodes.iter().for_each(Node::show_log);
    }
    futures::future::join_all(nodes.iter_mut().map(Node::stop)).await;
    let path = folder.path().to_owned();
    crate::blocking(move || Ok(folder.close()?)).await?;
    if !path.exists() {
        stdout.line("all processes stopped, temporary directory removed");
    }
    result?;
    stdout.finish()
}

async fn show(arguments: &Arguments, folder: &Path, nodes: &mut Vec<Node>) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let source = match &arguments.path {
        Some(path) => std::path::absolute(path)?,
        None => {
            stdout.line("creating a file with 256 MiB of random data");
            let path = folder.join("demo.bin");
            let target = path.clone();
            crate::blocking(move || sample::create(&target)).await?;
            path
        }
    };
    let hashed = source.clone();
    let expected = crate::blocking(move || sample::hashes(&hashed)).await?;
    let total: u64 = expected.iter().map(|file| file.size).sum();

    stdout.line(&format!("starting a tracker and three peers in {}", folder.display()));
    let tracker = Node::tracker(folder, arguments.http).await?;
    let endpoint = tracker.endpoint.clone();
    nodes.push(tracker);
    let seconds = if arguments.http { WATCHED_DOWNLOAD_SECONDS } else { SLOW_DOWNLOAD_SECONDS };
    let slow = (total / seconds).max(1 << 20);
    for (number, limit) in [(1, None), (2, None), (3, Some(slow))] {
        nodes.push(Node::peer(folder, number, &endpoint, limit, arguments.http).await?);
    }
    for Node { name, endpoint, pid, .. } in nodes.iter() {
        stdout.line(&format!("  {name:8}  {endpoint}  process {pid}"));
    }
    if let (true, [tracker, .., peer]) = (arguments.http, nodes.as_slice()) {
        stdout.line(&format!("open {} to watch peer 3, and {} for the tracker", peer.url, tracker.url));
    }

    let (published, seconds) = publish(&nodes[1], &source).await?;
    let mark = if published.kind == FileKind::Collection { "/" } else { "" };
    stdout.line(&format!(
        "peer 1 published {}{mark}: {} in {seconds:.2} s, {}",
        published.name,
        size(total),
        rate(total, seconds)
    ));
    stdout.line(&format!("  id {}", published.id));
    if let [file] = expected.as_slice()
        && published.kind != FileKind::Collection
        && file.hash != *published.id.as_bytes()
    {
        return Err(Failure::failed("the id differs from the BLAKE3 hash of the file"));
    }

    let query = published.id.to_string();
    let second = folder.join("copy-2");
    let seconds = get(&nodes[2], &query, &second, None).await?;
    stdout.line(&format!("peer 2 downloaded it in {seconds:.2} s, {}", rate(total, seconds)));

    stdout.line(&format!("peer 3 downloads it, limited to {}", rate(slow, 1.0)));
    let third = folder.join("copy-3");
    let (halfway, mut reached) = mpsc::channel(1);
    let (left, right) = nodes.split_at_mut(3);
    let downloading = get(&right[0], &query, &third, Some(halfway));
    let killing = async {
        let Some((done, providers)) = reached.recv().await else { return Ok(None) };
        left[1].kill().await?;
        Ok::<_, Failure>(Some((done, providers)))
    };
    let (seconds, killed) = tokio::try_join!(downloading, killing)?;
    match killed {
        Some((done, providers)) => stdout.line(&format!(
            "  after {} of {}, from {providers} providers: killed peer 1 (SIGKILL to process {})",
            size(done),
            size(total),
            left[1].pid
        )),
        None => stdout.line("  the download completed before peer 1 could be killed"),
    }
    stdout.line(&format!("peer 3 downloaded it in {seconds:.2} s, {}", rate(total, seconds)));

    for copy in [second, third] {
        let found = crate::blocking(move || sample::hashes(&copy)).await?;
        if found != expected {
            return Err(Failure::failed("a downloaded copy differs from the published file"));
        }
    }
    let files = count(expected.len() as u64, "file");
    stdout.line(&format!("verified: the BLAKE3 hashes of both copies match ({files})"));
    stdout.finish()
}

/// Publishes on a node. Returns the duration in seconds, too.
async fn publish(node: &Node, source: &Path) -> Result<(Published, f64), Failure> {
    let mut bar = Bar::new();
    let started = Instant::now();
    let mut found = None;
    let mut show = |event| match event {
        Event::Hashing { done, total, .. } => bar.show("peer 1 reads the file", done, total, None),
        Event::Published(published) => found = Some(published),
        _ => {}
    };
    // A file name that is not a valid catalogue name is replaced.
    let own: Option<Name> =
        source.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    let name = own.is_none().then(|| "demo".parse().expect("`demo` is a valid name"));
    let command = Command::Publish {
        paths: vec![source.to_owned()],
        name,
        store: false,
        pin: false,
        strict: false,
        exclude: Vec::new(),
    };
    let result = node.run(command, &mut show).await;
    bar.clear();
    result?;
    let published = found.ok_or_else(|| Failure::failed("the file was not published"))?;
    Ok((published, started.elapsed().as_secs_f64()))
}

/// Downloads on a node. Returns the duration in seconds. Sends progress and number of providers to `halfway` once half of
/// the file is complete.
async fn get(
    node: &Node,
    query: &str,
    output: &Path,
    mut halfway: Option<mpsc::Sender<(u64, u32)>>,
) -> Result<f64, Failure> {
    let mut bar = Bar::new();
    let mut duration = None;
    let label = format!("{} downloads", node.name);
    let mut show = |event| match event {
        Event::Progress { done, total, providers } => {
            bar.show(&label, done, total, Some(providers));
            if done >= total / 2
                && done < total
                && let Some(halfway) = halfway.take()
            {
                let _ = halfway.try_send((done, providers));
            }
        }
        Event::Complete { seconds, .. } => duration = Some(seconds),
        _ => {}
    };
    let output = Output::Path { path: output.to_owned(), into: false };
    let command = Command::Get { queries: vec![query.to_owned()], output, force: false, sync: false };
    let result = node.run(command, &mut show).await;
    bar.clear();
    result.context(&node.name)?;
    duration.ok_or_else(|| Failure::failed("the download did not complete"))
}
