//! Crash tests: kills processes during commits and openings and checks the data afterwards.
//!
//! The victim is another process that opens the storage at the same place and calls [`run_victim`]: the binary of a test, see
//! [`survive_kills`], or another program. One victim is killed during its commits, the next one about when it opens the
//! storage. A kill tests crashes of the process, not power failures.

mod load;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::RngExt;

use super::bench::{Bench, Violation, ensure, open_when_released};
use super::builder::Builder;
use super::case::{Case, Group, Outcome, expect_all};
use super::runner::{BLOCKED_TIMEOUT, guard};
use enjambre_core::{Storage, StorageError};
use load::{Load, MAX_COMMITS, Run, WRITERS, check};

/// The cases of this level.
pub const CASES: &[Case] = &[
    Case {
        name: "durable_commits_survive_kill",
        group: Group::Crash,
        requirement: "Durable writes and deletions survive a kill of the process, also one during the next opening.",
    },
    Case {
        name: "buffered_commits_survive_kill",
        group: Group::Crash,
        requirement: "Buffered writes and deletions survive a kill of the process, also one during the next opening.",
    },
    Case {
        name: "batches_are_atomic_after_kill",
        group: Group::Crash,
        requirement: "After a kill of the process each batch is applied completely or not at all, acknowledged or not.",
    },
];

/// The environment variables of a victim: its case, and the number of its first commit, see [`load`].
const CASE: &str = "ENJAMBRE_CRASH_CASE";
const FIRST: &str = "ENJAMBRE_CRASH_FIRST";
/// The environment variable of a victim of [`survive_kills`]: the directory of the data.
const DIRECTORY: &str = "ENJAMBRE_CRASH_DIRECTORY";
/// The line that a victim prints before it opens the storage.
const OPENING: &str = "opening";
/// The prefix of the line for an acknowledged commit.
const ACKNOWLEDGED: &str = "acknowledged ";
const ROUNDS: u32 = 4;
/// The timeout and the poll interval, in milliseconds, for the end of a process that closed its output.
const EXIT_TIMEOUT: u64 = 2000;
const EXIT_POLL: u64 = 5;

/// Runs one of [`CASES`]. `victim` returns the command of a process that calls [`announce_opening`], opens the storage at the
/// place and calls [`run_victim`]. The process must not redirect its standard output.
pub async fn run<B: Builder>(
    builder: &B,
    victim: impl Fn(&B::Place) -> Command,
    case: &'static Case,
) -> Outcome {
    guard(builder, case, BLOCKED_TIMEOUT, async |bench| survive(bench, &victim, case).await).await
}

/// Runs all of [`CASES`] with the calling test as the victim. `test` is the full name of the test, which must call this function
/// first. `open` opens the storage in a directory.
///
/// # Panics
/// If a case fails. The message contains all failures.
pub async fn survive_kills<F, Fut>(test: &str, open: F)
where
    F: Fn(PathBuf) -> Fut + Sync,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send,
{
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        announce_opening();
        let storage = open_when_released(async || open(PathBuf::from(&directory)).await).await;
        let storage = storage.expect("the victim opens the storage");
        return run_victim(storage).await.expect("the victim commits");
    }
    let builder = InDirectories(open);
    let program = std::env::current_exe().expect("the path of the test binary");
    let victim = |directory: &tempfile::TempDir| {
        let mut command = Command::new(&program);
        command.args([test, "--exact", "--nocapture"]).env(DIRECTORY, directory.path());
        command
    };
    let mut outcomes = Vec::new();
    for case in CASES {
        outcomes.push(run(&builder, victim, case).await);
    }
    expect_all(&outcomes);
}

struct InDirectories<F>(F);

impl<F, Fut> Builder for InDirectories<F>
where
    F: Fn(PathBuf) -> Fut + Sync,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send,
{
    type Place = tempfile::TempDir;

    fn place(&self) -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    async fn open(&self, place: &tempfile::TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        (self.0)(Path::to_path_buf(place.path())).await
    }
}

/// Prints a line before the storage is opened, so that the victim can be killed during the opening.
pub fn announce_opening() {
    // Written directly, since the test harness would capture `println!`. An error means that the parent is about to kill this
    // process.
    let _ = std::io::stdout().lock().write_all(format!("\n{OPENING}\n").as_bytes());
}

/// Commits in several tasks and prints each acknowledged commit, until the process is killed or its output is closed.
pub async fn run_victim(storage: Arc<dyn Storage>) -> Result<(), StorageError> {
    let variable = |name| std::env::var(name).ok();
    let load = variable(CASE).and_then(|name| Load::of(&name)).ok_or_else(|| {
        StorageError::backend("run the crash victim", format!("{CASE} is not a crash case"))
    })?;
    let first: u64 = variable(FIRST).and_then(|first| first.parse().ok()).unwrap_or(0);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storage.clone();
        writers.spawn(async move {
            let largest = storage.limits().max_value;
            for number in (first + writer..first + MAX_COMMITS).step_by(WRITERS as usize) {
                storage.commit(load.batch(first, number, largest), (load.durability)(number)).await?;
                let line = format!("\n{ACKNOWLEDGED}{number}\n");
                if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
                    break;
                }
            }
            Ok(())
        });
    }
    writers.join_all().await.into_iter().collect()
}

/// The time of a kill.
#[derive(Debug, Clone, Copy)]
enum Kill {
    AfterCommits(usize),
    /// This long after the victim announced its opening.
    AfterOpening(Duration),
}

/// The result of a victim.
#[derive(Debug)]
struct Killed {
    acknowledged: Vec<u64>,
    /// The time from the opening to the first acknowledged commit.
    opening: Duration,
    /// The exit status.
    exit: String,
}

/// Starts victims at one place, kills each at a random time, and checks the data.
async fn survive<B: Builder>(
    bench: &mut Bench<'_, B>,
    victim: &impl Fn(&B::Place) -> Command,
    case: &Case,
) -> Result<(), Violation> {
    let Some(load) = Load::of(case.name) else {
        return Err(Violation(format!("unknown crash case {}", case.name)));
    };
    let mut runs: Vec<Run> = Vec::new();
    for round in 0..ROUNDS {
        bench.probe.close().await?;
        let kill_after = rand::rng().random_range(1..600);
        let mut kill = Kill::AfterCommits(kill_after);
        for killed_during in ["its commits", "its opening"] {
            let first = runs.last().map_or(0, Run::next);
            let mut command = victim(bench.place());
            command.env(CASE, case.name).env(FIRST, first.to_string());
            let Killed { acknowledged, opening, exit } = run_and_kill(command, kill).await?;
            ensure!(
                matches!(kill, Kill::AfterOpening(_)) || acknowledged.len() >= kill_after,
                "the victim of round {round} ended by itself after {} commits, before it was killed after {kill_after}: \
                 {exit}",
                acknowledged.len()
            );
            bench.note(format!(
                "a process with the first commit {first} acknowledged {} commits, the last {:?}, and was killed during {killed_during}",
                acknowledged.len(),
                acknowledged.last()
            ));
            runs.push(Run { first, acknowledged });
            kill = Kill::AfterOpening(opening.mul_f64(rand::rng().random::<f64>()));
        }
        bench.open_after_release().await?;
        check(bench, load, &runs).await?;
    }
    Ok(())
}

/// A process that is killed on drop.
struct Victim(Arc<Mutex<Child>>);

impl Drop for Victim {
    fn drop(&mut self) {
        let mut child = self.0.lock();
        let _ = child.kill();
        let _ = child.wait();
    }
}

async fn run_and_kill(mut command: Command, kill: Kill) -> Result<Killed, Violation> {
    let failed = |error: &dyn std::fmt::Display| Violation(format!("cannot run the victim: {error}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&format!("{command:?}: {error}")))?;
    let output = child.stdout.take().ok_or_else(|| failed(&"no standard output"))?;
    let victim = Victim(Arc::new(Mutex::new(child)));
    let child = Arc::clone(&victim.0);
    let reading = tokio::task::spawn_blocking(move || listen(output, &child, kill));
    reading.await.map_err(|error| failed(&error))
}

/// Reads the output of a victim until its end and kills the victim in time.
fn listen(output: ChildStdout, child: &Arc<Mutex<Child>>, kill: Kill) -> Killed {
    let mut output = BufReader::new(output);
    let (mut acknowledged, mut opened, mut opening) = (Vec::new(), Instant::now(), Duration::ZERO);
    let mut line = String::new();
    while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        // The kill may truncate the last line.
        let whole = line.strip_suffix('\n').unwrap_or_default();
        if whole == OPENING {
            opened = Instant::now();
            if let Kill::AfterOpening(time) = kill {
                let child = Arc::clone(child);
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    let _ = child.lock().kill();
                });
            }
        } else if let Some(Ok(number)) = whole.strip_prefix(ACKNOWLEDGED).map(str::parse) {
            if acknowledged.is_empty() {
                opening = opened.elapsed();
            }
            acknowledged.push(number);
            let due = match kill {
                Kill::AfterCommits(count) => acknowledged.len() == count,
                // The opening is finished.
                Kill::AfterOpening(_) => true,
            };
            if due {
                let _ = child.lock().kill();
            }
        }
        line.clear();
    }
    Killed { acknowledged, opening, exit: exit_of(child) }
}

/// Returns the exit status of a process that closed its output.
fn exit_of(child: &Mutex<Child>) -> String {
    for _ in 0..EXIT_TIMEOUT / EXIT_POLL {
        match child.lock().try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return status.to_string(),
            Err(error) => return error.to_string(),
        }
        std::thread::sleep(Duration::from_millis(EXIT_POLL));
    }
    "running with closed output".to_owned()
}
