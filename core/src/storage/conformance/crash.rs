//! Kills a process that commits, and looks at what it left behind.
//!
//! The test runs its own binary again as the victim. A kill shows what survives a crash of the process, not a
//! power cut; every acknowledged commit must be there, `Buffered` ones as well, and every other one whole or
//! not at all.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;

use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

const A: Space = Space::new("a");
const B: Space = Space::new("b");
/// Tells the victim where to write, and from which number on.
const FOLDER: &str = "ENJAMBRE_CRASH_FOLDER";
const FIRST: &str = "ENJAMBRE_CRASH_FIRST";
/// What an acknowledged commit prints before its number.
const ACKNOWLEDGED: &str = "acknowledged ";
const ROUNDS: u32 = 8;
/// How many commits are under way at once.
const WRITERS: u64 = 6;
/// A victim that nobody kills ends by itself.
const MOST: u64 = 50_000;

/// Lets victims commit at one place, kills each at a random moment, and checks what is there. `test` is the full
/// name of the calling test, which must do nothing before; `open` opens the storage in a folder.
///
/// # Panics
/// If something acknowledged is lost, or a batch is torn.
pub async fn survive_kills<F, Fut>(test: &str, open: F)
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>>,
{
    if let Some(folder) = std::env::var_os(FOLDER) {
        let first = std::env::var(FIRST).ok().and_then(|first| first.parse().ok()).unwrap_or(0);
        return be_the_victim(open(folder.into()).await.expect("the victim opens the storage"), first).await;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut acknowledged = Vec::new();
    let mut first = 0;
    for round in 0..ROUNDS {
        let kill_after = rand::rng().random_range(1..600);
        let before = acknowledged.len();
        acknowledged.extend(run_victim(test, folder.path(), first, kill_after));
        assert!(acknowledged.len() > before, "the victim of round {round} acknowledges something");
        let storage = open_after_kill(&open, folder.path()).await;
        first = check(&*storage, &acknowledged).await + 1;
        storage.close().await.expect("the storage closes");
    }
}

/// Commits, several at once, until it is killed.
async fn be_the_victim(storage: Arc<dyn Storage>, first: u64) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storage.clone();
        writers.spawn(async move {
            for number in (first + writer..first + MOST).step_by(WRITERS as usize) {
                let mut batch = Batch::new();
                let value = value_of(number, storage.limits().max_value);
                batch.put(A, key(number), value.clone()).put(B, key(number), value);
                let durability = if number % 5 == 0 { Durability::Durable } else { Durability::Buffered };
                storage.commit(batch, durability).await.expect("a commit succeeds");
                // Past the test harness, which would keep it until the test ends.
                let line = format!("\n{ACKNOWLEDGED}{number}\n");
                let _ = std::io::stdout().lock().write_all(line.as_bytes());
            }
        });
    }
    writers.join_all().await;
}

/// Numbers that the victim acknowledged before it was killed.
fn run_victim(test: &str, folder: &Path, first: u64, kill_after: usize) -> Vec<u64> {
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let program = std::env::current_exe().expect("the path of the test binary");
    let victim = Command::new(program)
        .args([test, "--exact", "--nocapture"])
        .env(FOLDER, folder)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test binary runs");
    let mut victim = Killed(victim);
    let mut output = BufReader::new(victim.0.stdout.take().expect("its output is piped"));
    let mut numbers: Vec<u64> = Vec::new();
    let mut line = String::new();
    while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        // A line without its end was cut by the kill, and so perhaps its number.
        let number = line.strip_prefix(ACKNOWLEDGED).and_then(|rest| rest.strip_suffix('\n'));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        line.clear();
        if numbers.len() == kill_after {
            let _ = victim.0.kill();
        }
    }
    numbers
}

async fn open_after_kill<F, Fut>(open: &F, folder: &Path) -> Arc<dyn Storage>
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>>,
{
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match open(folder.to_path_buf()).await {
            Ok(storage) => return storage,
            Err(StorageError::Locked { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("after a kill the storage opens: {error} ({error:?})"),
        }
    }
}

/// Gives the highest number that is there.
async fn check(storage: &dyn Storage, acknowledged: &[u64]) -> u64 {
    let keys: Vec<Key> = acknowledged.iter().copied().map(key).collect();
    for (number, value) in acknowledged.iter().zip(storage.get(A, &keys).await.expect("a get succeeds")) {
        assert!(value.is_some(), "the commit {number} was acknowledged and is lost");
    }
    let (mut highest, mut rest) = (0, KeyRange::all());
    loop {
        let page = storage.scan(A, rest.clone(), 100).await.expect("a scan succeeds");
        let Some((last, _)) = page.last() else { break };
        rest = rest.after(last);
        for (key, value) in page {
            let number = key.as_bytes().try_into().map(u64::from_be_bytes).expect("a key of the victim");
            let intact = value == value_of(number, storage.limits().max_value);
            assert!(intact, "the value of {number} is not what was written");
            let other = storage.get(B, std::slice::from_ref(&key)).await.expect("a get succeeds").remove(0);
            assert!(other == Some(value), "the batch {number} is torn");
            highest = highest.max(number);
        }
    }
    let mut counts = [0, 0];
    for (count, space) in counts.iter_mut().zip([A, B]) {
        let mut rest = KeyRange::all();
        while let Some((last, _)) = {
            let page = storage.scan(space, rest.clone(), 1000).await.expect("a scan succeeds");
            *count += page.len();
            page.last().cloned()
        } {
            rest = rest.after(&last);
        }
    }
    assert_eq!(counts[0], counts[1], "a batch is torn: its two spaces do not hold the same");
    highest
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
    (0..len.min(max)).map(|index| (number as usize * 31 + index) as u8).collect()
}
