//! The level for crashes: kills processes that commit or open, and looks at what they left behind.
//!
//! The victim is another process that opens the storage at the same place and calls [`be_the_victim`]: the binary of a
//! test with the name of that test, see [`survive_kills`], or any other program. One is killed in the middle of its
//! commits, the next one at about the time when it opens what that one left. A kill shows what survives a crash of the
//! process, not a power cut.

mod load;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::RngExt;

use super::bench::{Bench, Broken, ensure, open_when_free};
use super::case::{Case, Group, Outcome, expect_all};
use super::{Builder, STANDSTILL, guard};
use crate::storage::Storage;
use crate::storage::error::StorageError;
use load::{Load, MOST, Run, WRITERS, check};

/// The cases of this level.
pub const CASES: &[Case] = &[
    Case {
        name: "a_kill_loses_nothing_durable",
        group: Group::Crash,
        obligation: "What a Durable commit wrote, overwrote or deleted stays so after the process is killed, also at the \
                     next opening.",
    },
    Case {
        name: "a_kill_loses_nothing_buffered",
        group: Group::Crash,
        obligation: "What a Buffered commit wrote, overwrote or deleted stays so after the process is killed, also at the \
                     next opening.",
    },
    Case {
        name: "a_kill_tears_no_batch",
        group: Group::Crash,
        obligation: "After the process is killed a batch is there whole or not at all, acknowledged or not.",
    },
];

/// Tells the victim which case it serves, and from which number on it commits, see [`load`].
const CASE: &str = "ENJAMBRE_CRASH_CASE";
const FIRST: &str = "ENJAMBRE_CRASH_FIRST";
/// Tells the victim of [`survive_kills`] where the data lies.
const FOLDER: &str = "ENJAMBRE_CRASH_FOLDER";
/// What a victim prints before it opens.
const OPENING: &str = "opening";
/// What an acknowledged commit prints before its number.
const ACKNOWLEDGED: &str = "acknowledged ";
const ROUNDS: u32 = 4;
/// For how many milliseconds, and how often, the end of a process is awaited whose output has ended.
const END: u64 = 2000;
const END_STEP: u64 = 5;

/// Runs one of [`CASES`]. `victim` gives the command that starts a process which calls [`say_opening`], opens the storage at
/// the place and calls [`be_the_victim`] with it; its standard output must be that of the process.
pub async fn run<B: Builder>(
    builder: &B,
    victim: impl Fn(&B::Place) -> Command,
    case: &'static Case,
) -> Outcome {
    guard(builder, case, STANDSTILL, async |bench| survive(bench, &victim, case).await).await
}

/// Runs every one of [`CASES`] with a test as its own victim. `test` is the full name of the calling test, which must do
/// nothing before; `open` opens the storage in a folder.
///
/// # Panics
/// If a case fails; the message holds all failures.
pub async fn survive_kills<F, Fut>(test: &str, open: F)
where
    F: Fn(PathBuf) -> Fut + Sync,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send,
{
    if let Some(folder) = std::env::var_os(FOLDER) {
        say_opening();
        let storage = open_when_free(async || open(PathBuf::from(&folder)).await).await;
        let storage = storage.expect("the victim opens the storage");
        return be_the_victim(storage).await.expect("the victim commits");
    }
    let builder = Folders(open);
    let program = std::env::current_exe().expect("the path of the test binary");
    let victim = |folder: &tempfile::TempDir| {
        let mut command = Command::new(&program);
        command.args([test, "--exact", "--nocapture"]).env(FOLDER, folder.path());
        command
    };
    let mut outcomes = Vec::new();
    for case in CASES {
        outcomes.push(run(&builder, victim, case).await);
    }
    expect_all(&outcomes);
}

struct Folders<F>(F);

impl<F, Fut> Builder for Folders<F>
where
    F: Fn(PathBuf) -> Fut + Sync,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send,
{
    type Place = tempfile::TempDir;

    fn place(&self) -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    async fn open(&self, place: &tempfile::TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        (self.0)(Path::to_path_buf(place.path())).await
    }
}

/// Says on the standard output that the storage is about to be opened, so that the kill can come in the middle of that.
pub fn say_opening() {
    // Past the harness of a test, which would keep it until the test ends. Where nobody listens any more, a kill comes.
    let _ = std::io::stdout().lock().write_all(format!("\n{OPENING}\n").as_bytes());
}

/// Commits, several at once, and says so on the standard output, until it is killed or nobody listens any more.
pub async fn be_the_victim(storage: Arc<dyn Storage>) -> Result<(), StorageError> {
    let variable = |name| std::env::var(name).ok();
    let load = variable(CASE).and_then(|name| Load::of(&name)).ok_or_else(|| {
        StorageError::backend("be the victim of a crash", format!("{CASE} names no case for crashes"))
    })?;
    let first: u64 = variable(FIRST).and_then(|first| first.parse().ok()).unwrap_or(0);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storage.clone();
        writers.spawn(async move {
            let largest = storage.limits().max_value;
            for number in (first + writer..first + MOST).step_by(WRITERS as usize) {
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

/// When a victim is killed.
#[derive(Debug, Clone, Copy)]
enum Kill {
    AfterCommits(usize),
    /// After it said that it opens.
    AfterOpening(Duration),
}

/// What a victim did.
#[derive(Debug)]
struct Killed {
    acknowledged: Vec<u64>,
    /// How long it took from its opening to the first acknowledgement.
    opening: Duration,
    /// How it ended.
    end: String,
}

/// Lets victims commit at one place, kills each at a random moment, and checks what is there.
async fn survive<B: Builder>(
    bench: &mut Bench<'_, B>,
    victim: &impl Fn(&B::Place) -> Command,
    case: &Case,
) -> Result<(), Broken> {
    let Some(load) = Load::of(case.name) else {
        return Err(Broken(format!("{} is no case of this level", case.name)));
    };
    let mut runs: Vec<Run> = Vec::new();
    for round in 0..ROUNDS {
        bench.probe.close().await?;
        let kill_after = rand::rng().random_range(1..600);
        let mut kill = Kill::AfterCommits(kill_after);
        // And once more while it opens what was left.
        for killed_in in ["its commits", "its opening"] {
            let first = runs.last().map_or(0, Run::next);
            let mut command = victim(bench.place());
            command.env(CASE, case.name).env(FIRST, first.to_string());
            let Killed { acknowledged, opening, end } = kill_it(command, kill).await?;
            ensure!(
                matches!(kill, Kill::AfterOpening(_)) || acknowledged.len() >= kill_after,
                "the victim of round {round} commits until it is killed after {kill_after} commits, but after {} it \
                 ended by itself: {end}",
                acknowledged.len()
            );
            bench.note(format!(
                "a process committed from {first} on, acknowledged {} commits, the last {:?}, and was killed in {killed_in}",
                acknowledged.len(),
                acknowledged.last()
            ));
            runs.push(Run { first, acknowledged });
            kill = Kill::AfterOpening(opening.mul_f64(rand::rng().random::<f64>()));
        }
        bench.open_left_behind().await?;
        check(bench, load, &runs).await?;
    }
    Ok(())
}

/// A process that does not outlive this.
struct Victim(Arc<Mutex<Child>>);

impl Drop for Victim {
    fn drop(&mut self) {
        let mut child = self.0.lock();
        let _ = child.kill();
        let _ = child.wait();
    }
}

async fn kill_it(mut command: Command, kill: Kill) -> Result<Killed, Broken> {
    let failed = |error: &dyn std::fmt::Display| Broken(format!("the victim cannot be run: {error}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&format!("{command:?}: {error}")))?;
    let output = child.stdout.take().ok_or_else(|| failed(&"its output is not there"))?;
    let victim = Victim(Arc::new(Mutex::new(child)));
    let child = Arc::clone(&victim.0);
    let reading = tokio::task::spawn_blocking(move || listen(output, &child, kill));
    reading.await.map_err(|error| failed(&error))
}

/// Hears what a victim says until it ends, and kills it when it is time.
fn listen(output: ChildStdout, child: &Arc<Mutex<Child>>, kill: Kill) -> Killed {
    let mut output = BufReader::new(output);
    let (mut acknowledged, mut opened, mut opening) = (Vec::new(), Instant::now(), Duration::ZERO);
    let mut line = String::new();
    while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        // A line without its end was cut by the kill, and so perhaps its number.
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
            let is_time = match kill {
                Kill::AfterCommits(count) => acknowledged.len() == count,
                // It has opened, at the latest.
                Kill::AfterOpening(_) => true,
            };
            if is_time {
                let _ = child.lock().kill();
            }
        }
        line.clear();
    }
    Killed { acknowledged, opening, end: end_of(child) }
}

/// How a process ended whose output did.
fn end_of(child: &Mutex<Child>) -> String {
    for _ in 0..END / END_STEP {
        match child.lock().try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return status.to_string(),
            Err(error) => return error.to_string(),
        }
        std::thread::sleep(Duration::from_millis(END_STEP));
    }
    "it runs, but its output is closed".to_owned()
}
