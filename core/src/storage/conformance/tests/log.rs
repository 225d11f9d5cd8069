//! A storage on a log file that forgets or tears what a kill meets, so that the level for crashes is known to be able to
//! fail; and the same log without a flaw.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space, Write};

/// Tells a victim which flaw it has, and where the log lies.
const FLAW: &str = "ENJAMBRE_TEST_FLAW";
const FOLDER: &str = "ENJAMBRE_TEST_FOLDER";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Flaw {
    None,
    /// Keeps `Buffered` commits in memory until the next `Durable` one.
    LosesBuffered,
    /// Keeps every commit in memory until the one after it.
    LosesDurable,
    /// Writes the last part of a batch together with the next one.
    Tears,
    /// Writes deletions nowhere, so that what was deleted comes back.
    LosesDeletions,
    /// Writes a key once, so that it has its old value again.
    LosesOverwrites,
    /// Cuts off all of the log at an opening and writes it again a little later.
    LosesAtOpening,
    /// Fails after the first commit, so that nobody has to kill the process.
    GivesUp,
}

const FLAWS: [Flaw; 8] = [
    Flaw::None,
    Flaw::LosesBuffered,
    Flaw::LosesDurable,
    Flaw::Tears,
    Flaw::LosesDeletions,
    Flaw::LosesOverwrites,
    Flaw::LosesAtOpening,
    Flaw::GivesUp,
];

/// The entries are in memory, and what was written is in a file as well.
#[derive(Debug)]
struct Log {
    entries: Memory,
    flaw: Flaw,
    /// What was not written yet, and the keys that were written.
    file: Mutex<(File, Vec<u8>, HashSet<Key>)>,
}

/// The next field, which has its length in front; none where it is not whole.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<4>()?;
    let (field, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = behind;
    Some(field)
}

impl Log {
    async fn open(folder: &Path, flaw: Flaw) -> Result<Self, StorageError> {
        let failed = |error| StorageError::backend("use the log", error);
        let path = folder.join("log");
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
            let space = str::from_utf8(space).ok().and_then(Space::parse).expect("a space was written");
            let key = Key::new(key.to_vec())?;
            match value.split_first() {
                Some((_, value)) => batch.put(space, key, value.to_vec()),
                None => batch.delete(space, key),
            };
        }
        if flaw == Flaw::LosesAtOpening && std::env::var_os(FLAW).is_some() {
            std::fs::write(&path, []).map_err(failed)?;
            // A kill comes between, at least now and then.
            std::thread::sleep(Duration::from_secs(1));
            std::fs::write(&path, &bytes).map_err(failed)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(failed)?;
        // What comes behind was cut by a kill. The next one may come any time, so nothing is written over.
        file.set_len(whole as u64).map_err(failed)?;
        Ok(Self { entries, flaw, file: Mutex::new((file, Vec::new(), HashSet::new())) })
    }

    fn append(&self, writes: &[Write], durability: Durability) -> std::io::Result<()> {
        // Each write is three fields, and an empty one ends the batch. A value has a byte in front, a deletion has nothing.
        let line = |writes: &[Write]| {
            let mut line = Vec::new();
            for write in writes {
                let (space, key) = write.target();
                let value = write.value().map(|value| [&[1], &value[..]].concat()).unwrap_or_default();
                for field in [space.name().as_bytes(), key.as_bytes(), &value] {
                    line.extend((field.len() as u32).to_be_bytes());
                    line.extend_from_slice(field);
                }
            }
            line.extend([0; 4]);
            line
        };
        let (file, kept, seen) = &mut *self.file.lock();
        let writes: Vec<Write> = writes
            .iter()
            .filter(|write| self.flaw != Flaw::LosesDeletions || write.value().is_some())
            .filter(|write| self.flaw != Flaw::LosesOverwrites || seen.insert(write.target().1.clone()))
            .cloned()
            .collect();
        let writes = &writes[..];
        if self.flaw == Flaw::GivesUp && file.metadata()?.len() > 0 {
            return Err(std::io::Error::other("told to"));
        }
        let (now, later) = match self.flaw {
            Flaw::LosesBuffered if durability == Durability::Buffered => (Vec::new(), line(writes)),
            Flaw::LosesDurable => (std::mem::take(kept), line(writes)),
            Flaw::Tears if writes.len() > 1 => {
                let (last, others) = writes.split_last().expect("it has writes");
                ([std::mem::take(kept), line(others)].concat(), line(std::slice::from_ref(last)))
            }
            _ => ([std::mem::take(kept), line(writes)].concat(), Vec::new()),
        };
        kept.extend(later);
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
        let (file, kept, _) = &mut *self.file.lock();
        let written = file.write_all(&std::mem::take(kept));
        written.map_err(|error| StorageError::backend("append to the log", error))
    }
}

struct InFolder(Flaw);

impl Builder for InFolder {
    type Place = tempfile::TempDir;

    fn place(&self) -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    async fn open(&self, place: &tempfile::TempDir) -> Result<Arc<dyn Storage>, StorageError> {
        Ok(Arc::new(Log::open(place.path(), self.0).await?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_kill_loses_or_tears_is_found_out() {
    const TEST: &str = "storage::conformance::tests::log::what_a_kill_loses_or_tears_is_found_out";
    if let (Ok(name), Ok(folder)) = (std::env::var(FLAW), std::env::var(FOLDER)) {
        let flaw = *FLAWS.iter().find(|flaw| format!("{flaw:?}") == name).expect("a flaw");
        crash::say_opening();
        let storage = Log::open(Path::new(&folder), flaw).await.expect("the victim opens the log");
        return crash::be_the_victim(Arc::new(storage)).await.expect("the victim commits");
    }
    let found = |name| match name {
        "a_kill_loses_nothing_durable" => {
            &[Flaw::LosesDurable, Flaw::LosesDeletions, Flaw::LosesAtOpening, Flaw::GivesUp][..]
        }
        "a_kill_loses_nothing_buffered" => &[Flaw::LosesBuffered, Flaw::LosesDurable, Flaw::LosesOverwrites],
        "a_kill_tears_no_batch" => &[Flaw::Tears],
        _ => &[],
    };
    for case in crash::CASES {
        assert!(!found(case.name).is_empty(), "nothing shows that {} can fail", case.name);
        for flaw in found(case.name).iter().copied().chain([Flaw::None]) {
            let victim = |folder: &tempfile::TempDir| {
                let mut command = Command::new(std::env::current_exe().expect("the test binary"));
                command.args([TEST, "--exact", "--nocapture"]);
                command.env(FLAW, format!("{flaw:?}")).env(FOLDER, folder.path());
                command
            };
            let outcome = crash::run(&InFolder(flaw), victim, case).await;
            assert_eq!(outcome.result.is_err(), flaw != Flaw::None, "{flaw:?}: {outcome:?}");
            if let Err(failure) = outcome.result {
                let text = failure.to_string();
                let told = if flaw == Flaw::GivesUp { "exit status: 101" } else { "was killed" };
                assert!(text.contains(case.obligation) && text.contains(told), "{text}");
            }
        }
    }
}
