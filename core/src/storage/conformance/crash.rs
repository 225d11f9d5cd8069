//! The level for crashes: kills a process that commits, and looks at what it left behind.
//!
//! The victim is another process that opens the storage at the same place and calls [`be_the_victim`]: the binary of a
//! test with the name of that test, see [`survive_kills`], or any other program. A kill shows what survives a crash of
//! the process, not a power cut.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;

use super::bench::{Bench, Broken, ensure, open_when_free};
use super::case::{Case, Group, Outcome, expect_all};
use super::{Builder, guard};
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

/// The cases of this level.
pub const CASES: &[Case] = &[
    Case {
        name: "a_kill_loses_nothing_durable",
        group: Group::Crash,
        obligation: "A Durable commit that was acknowledged is there after the process is killed.",
    },
    Case {
        name: "a_kill_loses_nothing_buffered",
        group: Group::Crash,
        obligation: "A Buffered commit that was acknowledged is there after the process is killed.",
    },
    Case {
        name: "a_kill_tears_no_batch",
        group: Group::Crash,
        obligation: "After the process is killed a batch is there whole or not at all, acknowledged or not.",
    },
];

/// Tells the victim which case it serves, and from which number on it commits.
const CASE: &str = "ENJAMBRE_CRASH_CASE";
const FIRST: &str = "ENJAMBRE_CRASH_FIRST";
/// Tells the victim of [`survive_kills`] where the data lies.
const FOLDER: &str = "ENJAMBRE_CRASH_FOLDER";
/// What an acknowledged commit prints before its number.
const ACKNOWLEDGED: &str = "acknowledged ";
const ROUNDS: u32 = 4;
/// How many commits are under way at once.
const WRITERS: u64 = 6;
/// A victim that nobody kills ends by itself.
const MOST: u64 = 50_000;
/// For how many milliseconds, and how often, the end of a process is awaited whose output has ended.
const END: u64 = 2000;
const END_STEP: u64 = 5;

/// What the victims of a case do.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// Of their own for each case, so that cases can share a place. A batch writes the same into all of them.
    spaces: &'static [Space],
    durability: fn(u64) -> Durability,
    /// Whether what was acknowledged must be there.
    keeps: bool,
}

impl Load {
    fn of(name: &str) -> Option<Self> {
        const DURABLE: &[Space] = &[Space::new("durable")];
        const BUFFERED: &[Space] = &[Space::new("buffered")];
        const TORN: &[Space] = &[Space::new("torn_a"), Space::new("torn_b"), Space::new("torn_c")];
        Some(match name {
            "a_kill_loses_nothing_durable" => {
                Self { spaces: DURABLE, durability: |_| Durability::Durable, keeps: true }
            }
            "a_kill_loses_nothing_buffered" => {
                Self { spaces: BUFFERED, durability: |_| Durability::Buffered, keeps: true }
            }
            "a_kill_tears_no_batch" => {
                let durability =
                    |number| if number % 5 == 0 { Durability::Durable } else { Durability::Buffered };
                Self { spaces: TORN, durability, keeps: false }
            }
            _ => return None,
        })
    }
}

/// Runs one of [`CASES`]. `victim` gives the command that starts a process which opens the storage at the place and calls
/// [`be_the_victim`] with it; its standard output must be that of the process.
pub async fn run<B: Builder>(
    builder: &B,
    victim: impl Fn(&B::Place) -> Command,
    case: &'static Case,
) -> Outcome {
    guard(builder, case, async |bench| survive(bench, &victim, case).await).await
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
                let (mut batch, value) = (Batch::new(), value_of(number, largest));
                for space in load.spaces {
                    batch.put(*space, key(number), value.clone());
                }
                storage.commit(batch, (load.durability)(number)).await?;
                // Past the harness of a test, which would keep it until the test ends.
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

/// Lets victims commit at one place, kills each at a random moment, and checks what is there.
async fn survive<B: Builder>(
    bench: &mut Bench<'_, B>,
    victim: &impl Fn(&B::Place) -> Command,
    case: &Case,
) -> Result<(), Broken> {
    let Some(load) = Load::of(case.name) else {
        return Err(Broken(format!("{} is no case of this level", case.name)));
    };
    let (mut acknowledged, mut first) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        bench.probe.close().await?;
        let kill_after = rand::rng().random_range(1..600);
        let mut command = victim(bench.place());
        command.env(CASE, case.name).env(FIRST, first.to_string());
        let (numbers, end) = kill_in_the_middle(command, kill_after).await?;
        ensure!(
            numbers.len() >= kill_after,
            "the victim of round {round} commits until it is killed after {kill_after} commits, but after {} it ended \
             by itself: {end}",
            numbers.len()
        );
        bench.note(format!(
            "a process committed from {first} on, acknowledged {} commits, the last {:?}, and was killed",
            numbers.len(),
            numbers.last().copied().unwrap_or_default()
        ));
        acknowledged.extend(numbers);
        bench.open_left_behind().await?;
        first = check(bench, load, &acknowledged).await? + 1;
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

/// The numbers that a victim acknowledged, and how it ended.
async fn kill_in_the_middle(mut command: Command, kill_after: usize) -> Result<(Vec<u64>, String), Broken> {
    let failed = |error: &dyn std::fmt::Display| Broken(format!("the victim cannot be run: {error}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&format!("{command:?}: {error}")))?;
    let output = child.stdout.take().ok_or_else(|| failed(&"its output is not there"))?;
    let victim = Victim(Arc::new(Mutex::new(child)));
    let child = Arc::clone(&victim.0);
    let reading = tokio::task::spawn_blocking(move || {
        let numbers = numbers_until_killed(output, &child, kill_after);
        (numbers, end_of(&child))
    });
    let outcome = reading.await.map_err(|error| failed(&error));
    drop(victim);
    outcome
}

fn numbers_until_killed(output: ChildStdout, child: &Mutex<Child>, kill_after: usize) -> Vec<u64> {
    let mut output = BufReader::new(output);
    let mut numbers: Vec<u64> = Vec::new();
    let mut line = String::new();
    while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        // A line without its end was cut by the kill, and so perhaps its number.
        let number = line.strip_prefix(ACKNOWLEDGED).and_then(|rest| rest.strip_suffix('\n'));
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            numbers.push(number);
            if numbers.len() == kill_after {
                let _ = child.lock().kill();
            }
        }
        line.clear();
    }
    numbers
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

/// Gives the highest number that is there.
async fn check<B: Builder>(bench: &Bench<'_, B>, load: Load, acknowledged: &[u64]) -> Result<u64, Broken> {
    let probe = &bench.probe;
    let largest = probe.limits().max_value;
    let mut found: Vec<Vec<u64>> = Vec::new();
    for space in load.spaces {
        let mut numbers = Vec::new();
        for (key, value) in probe.entries(*space, KeyRange::all(), 100).await? {
            let number = key.as_bytes().try_into().map(u64::from_be_bytes);
            let number = number.map_err(|_| Broken(format!("nobody wrote the key {key:?}")))?;
            let intact = value == value_of(number, largest);
            ensure!(intact, "the value of {number} is what was written, but it is another");
            numbers.push(number);
        }
        found.push(numbers);
    }
    let all = &found[0];
    for (space, numbers) in load.spaces.iter().zip(&found) {
        let odd = all.iter().zip(numbers).find_map(|(a, b)| (a != b).then_some(a.min(b)));
        let odd = odd.or_else(|| all.get(numbers.len())).or_else(|| numbers.get(all.len()));
        ensure!(
            odd.is_none(),
            "every batch is there in all of its spaces, but batch {} is in only one of {} and {}",
            odd.copied().unwrap_or_default(),
            load.spaces[0].name(),
            space.name()
        );
    }
    if load.keeps {
        let keys: Vec<Key> = acknowledged.iter().copied().map(key).collect();
        let values = probe.get(load.spaces[0], &keys).await?;
        let lost: Vec<u64> =
            acknowledged.iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(n, _)| *n).collect();
        ensure!(
            lost.is_empty(),
            "what was acknowledged is there, but of {} commits {} are lost, the first {}",
            acknowledged.len(),
            lost.len(),
            lost[0]
        );
    }
    Ok(all.last().copied().unwrap_or_default())
}

fn key(number: u64) -> Key {
    Key::new(number.to_be_bytes().to_vec()).expect("8 bytes")
}

/// Small and large ones, so that commits take different ways through the engine.
fn value_of(number: u64, max: usize) -> Bytes {
    let len = match number % 7 {
        0 => 60 * 1024,
        1 => 0,
        _ => 40 + (number % 500) as usize,
    };
    let mut value = (number.wrapping_mul(31) + 7).to_be_bytes().repeat(len.div_ceil(8));
    value.truncate(len.min(max));
    value.into()
}
