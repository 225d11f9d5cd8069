//! A storage with a log file that loses or tears commits on a kill, which proves that each crash case can fail, and the same
//! log without a defect.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use enjambre_core::{Batch, Durability, Key, KeyRange, Limits, Memory, Space, Write};

/// The environment variables of a victim: its defect, and the directory of the log.
const DEFECT: &str = "ENJAMBRE_TEST_DEFECT";
const DIRECTORY: &str = "ENJAMBRE_TEST_DIRECTORY";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Defect {
    None,
    /// `Buffered` commits stay in memory until the next `Durable` one.
    LosesBuffered,
    /// A commit stays in memory until the next one.
    LosesDurable,
    /// The last write of a batch is appended with the next batch.
    Tears,
    /// Deletions are not logged.
    LosesDeletions,
    /// Only the first write to a key is logged.
    LosesOverwrites,
    /// The log is truncated at an opening and rewritten later.
    LosesAtOpening,
    /// The second commit fails.
    FailsSecondCommit,
}

const DEFECTS: [Defect; 8] = [
    Defect::None,
    Defect::LosesBuffered,
    Defect::LosesDurable,
    Defect::Tears,
    Defect::LosesDeletions,
    Defect::LosesOverwrites,
    Defect::LosesAtOpening,
    Defect::FailsSecondCommit,
];

/// In-memory entries with a log file.
#[derive(Debug)]
struct Log {
    entries: Memory,
    defect: Defect,
    /// The file, the bytes not yet appended, and the logged keys.
    file: Mutex<(File, Vec<u8>, HashSet<Key>)>,
}

/// Returns the next length-prefixed field, or `None` if it is truncated.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<4>()?;
    let (field, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = behind;
    Some(field)
}

impl Log {
    async fn open(directory: &Path, defect: Defect) -> Result<Self, StorageError> {
        let failed = |error| StorageError::backend("open the log", error);
        let path = directory.join("log");
        let bytes = std::fs::read(&path).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(failed(error)),
        })?;
        let entries = Memory::new();
        let (mut rest, mut batch, mut whole) = (&bytes[..], Batch::new(), 0);
        while let Some(space) = field(&mut rest) {
            if space.is_empty() {
                entries.commit(std::mem::take(&mut batch), Durability::Durable).await?;
                whole = bytes.len() - rest.len();
                continue;
            }
            let (Some(key), Some(value)) = (field(&mut rest), field(&mut rest)) else { break };
            let space = str::from_utf8(space).ok().and_then(Space::parse).expect("a valid space");
            let key = Key::new(key.to_vec())?;
            match value.split_first() {
                Some((_, value)) => batch.put(space, key, value.to_vec()),
                None => batch.delete(space, key),
            };
        }
        if defect == Defect::LosesAtOpening && std::env::var_os(DEFECT).is_some() {
            std::fs::write(&path, []).map_err(failed)?;
            // Long enough for a kill.
            std::thread::sleep(Duration::from_secs(1));
            std::fs::write(&path, &bytes).map_err(failed)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(failed)?;
        // Removes a batch that a kill truncated. The rest is not rewritten, since the next kill may come at any time.
        file.set_len(whole as u64).map_err(failed)?;
        Ok(Self { entries, defect, file: Mutex::new((file, Vec::new(), HashSet::new())) })
    }

    fn append(&self, writes: &[Write], durability: Durability) -> std::io::Result<()> {
        // A write consists of three fields, and an empty field ends the batch. A value is prefixed with a byte; a deletion is empty.
        let encode = |writes: &[Write]| {
            let mut bytes = Vec::new();
            for write in writes {
                let (space, key) = write.target();
                let value = write.value().map(|value| [&[1], &value[..]].concat()).unwrap_or_default();
                for field in [space.name().as_bytes(), key.as_bytes(), &value] {
                    bytes.extend((field.len() as u32).to_be_bytes());
                    bytes.extend_from_slice(field);
                }
            }
            bytes.extend([0; 4]);
            bytes
        };
        let (file, pending, seen) = &mut *self.file.lock();
        let writes: Vec<Write> = writes
            .iter()
            .filter(|write| self.defect != Defect::LosesDeletions || write.value().is_some())
            .filter(|write| self.defect != Defect::LosesOverwrites || seen.insert(write.target().1.clone()))
            .cloned()
            .collect();
        let writes = &writes[..];
        if self.defect == Defect::FailsSecondCommit && file.metadata()?.len() > 0 {
            return Err(std::io::Error::other("injected fault"));
        }
        let (now, later) = match self.defect {
            Defect::LosesBuffered if durability == Durability::Buffered => (Vec::new(), encode(writes)),
            Defect::LosesDurable => (std::mem::take(pending), encode(writes)),
            Defect::Tears if writes.len() > 1 => {
                let (last, others) = writes.split_last().expect("a write");
                ([std::mem::take(pending), encode(others)].concat(), encode(std::slice::from_ref(last)))
            }
            _ => ([std::mem::take(pending), encode(writes)].concat(), Vec::new()),
        };
        pending.extend(later);
        file.write_all(&now)
    }
}

#[async_trait]
impl Storage for Log {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.entries.get(space, keys).await
    }

    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        self.entries.scan(space, range, limit).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let writes = batch.writes.clone();
        self.entries.commit(batch, durability).await?;
        self.append(&writes, durability).map_err(|error| StorageError::backend("append to the log", error))
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.entries.sync().await
    }

    fn limits(&self) -> Limits {
        self.entries.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        let (file, pending, _) = &mut *self.file.lock();
        let written = file.write_all(&std::mem::take(pending));
        written.map_err(|error| StorageError::backend("append to the log", error))
    }
}

struct InDirectory(Defect);

impl Builder for InDirectory {
    type Place = tempfile::TempDir;

    fn place(&self) -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    async fn open(&self, place: &tempfile::TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        Ok(Arc::new(Log::open(place.path(), self.0).await?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_cases_detect_lost_and_torn_commits() {
    const TEST: &str = "storage::tests::log::crash_cases_detect_lost_and_torn_commits";
    if let (Ok(name), Ok(directory)) = (std::env::var(DEFECT), std::env::var(DIRECTORY)) {
        let defect = *DEFECTS.iter().find(|defect| format!("{defect:?}") == name).expect("a defect");
        crash::announce_opening();
        let storage = Log::open(Path::new(&directory), defect).await.expect("the victim opens the log");
        return crash::run_victim(Arc::new(storage)).await.expect("the victim commits");
    }
    let detected_by = |name| match name {
        "durable_commits_survive_kill" => {
            &[Defect::LosesDurable, Defect::LosesDeletions, Defect::LosesAtOpening, Defect::FailsSecondCommit]
                [..]
        }
        "buffered_commits_survive_kill" => {
            &[Defect::LosesBuffered, Defect::LosesDurable, Defect::LosesOverwrites]
        }
        "batches_are_atomic_after_kill" => &[Defect::Tears],
        _ => &[],
    };
    for case in crash::CASES {
        assert!(!detected_by(case.name).is_empty(), "no defect is detected by {}", case.name);
        for defect in detected_by(case.name).iter().copied().chain([Defect::None]) {
            let victim = |directory: &tempfile::TempDir| {
                let mut command = Command::new(std::env::current_exe().expect("the test binary"));
                command.args([TEST, "--exact", "--nocapture"]);
                command.env(DEFECT, format!("{defect:?}")).env(DIRECTORY, directory.path());
                command
            };
            let outcome = crash::run(&InDirectory(defect), victim, case).await;
            assert_eq!(outcome.result.is_err(), defect != Defect::None, "{defect:?}: {outcome:?}");
            if let Err(failure) = outcome.result {
                let text = failure.to_string();
                let expected =
                    if defect == Defect::FailsSecondCommit { "exit status: 101" } else { "was killed" };
                assert!(text.contains(case.requirement) && text.contains(expected), "{text}");
            }
        }
    }
}
