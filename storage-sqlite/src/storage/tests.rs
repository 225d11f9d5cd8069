//! Tests of the engine: full disk, log, journal and syncs.

use std::time::{Duration, Instant};

use super::*;
use crate::checkpoint::TRUNCATE_LOG;
use crate::compact::PAGES;

const SPACE: Space = Space::new("s");

fn write(number: u32, len: usize) -> Write {
    Write::Put(SPACE, Key::new(number.to_be_bytes().to_vec()).unwrap(), vec![7; len].into())
}

#[test]
fn full_database_refuses_whole_batches_and_continues() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Records, cache_kib: 64 };
    let mut engine = Sqlite::open(&options).unwrap();
    engine.apply(&[write(0, 10)], Durability::Durable).unwrap();
    engine.connection.pragma_update(None, "max_page_count", 20).unwrap();
    let writes: Vec<Write> = (0..100).map(|number| write(number, 2000)).collect();
    let outcome = engine.apply(&writes, Durability::Durable);
    assert!(matches!(outcome, Err(ApplyError::Refused(StorageError::Full { .. }))), "{outcome:?}");
    let mut reader = engine.reader().unwrap();
    let there = reader.scan(SPACE, &KeyRange::all(), 1000, MAX_PAGE).unwrap();
    assert_eq!(there.len(), 1, "nothing of it is applied");
    assert_eq!(there[0].1.len(), 10);
    engine.apply(&[write(1, 10)], Durability::Buffered).unwrap();
    engine.connection.pragma_update(None, "max_page_count", 100_000).unwrap();
    engine.apply(&writes, Durability::Durable).unwrap();
    assert_eq!(reader.scan(SPACE, &KeyRange::all(), 1000, MAX_PAGE).unwrap().len(), 100);
}

#[test]
fn space_of_deleted_content_is_reusable_on_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Content, cache_kib: 64 };
    let mut engine = Sqlite::open(&options).unwrap();
    let writes: Vec<Write> = (0..8).map(|number| write(number, 1 << 20)).collect();
    engine.apply(&writes, Durability::Durable).unwrap();
    assert!(engine.required_space(4 << 20).unwrap() > 8 << 20, "the reserve is kept");
    let deletions: Vec<Write> =
        writes.iter().map(|write| Write::Delete(SPACE, write.target().1.clone())).collect();
    engine.apply(&deletions, Durability::Durable).unwrap();
    let length = |engine: &Sqlite| std::fs::metadata(&engine.options.path).unwrap().len();
    let before = length(&engine);
    assert!(engine.required_space(4 << 20).unwrap() <= JOURNAL);
    engine.apply(&writes[..4], Durability::Durable).unwrap();
    assert_eq!(length(&engine), before);
    assert!(std::fs::metadata(&engine.log).unwrap().len() <= JOURNAL, "new content needs no journal");
}

#[test]
fn compacted_database_returns_space_of_deleted_entries() {
    for role in [Role::Records, Role::Content] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { path: folder.path().join("db"), role, cache_kib: 64 };
        let mut engine = Sqlite::open(&options).unwrap();
        for number in 0..40 {
            engine.apply(&[write(number, 1 << 20)], Durability::Durable).unwrap();
        }
        let deletions: Vec<Write> =
            (0..39).map(|n| Write::Delete(SPACE, write(n, 0).target().1.clone())).collect();
        engine.apply(&deletions, Durability::Durable).unwrap();
        engine.close().unwrap();
        let freed = Sqlite::open(&options).unwrap().compact().unwrap();
        assert!(freed > 38 << 20, "{role:?}: {freed}");
        let engine = Sqlite::open(&options).unwrap();
        let left = engine.reader().unwrap().scan(SPACE, &KeyRange::all(), 100, MAX_PAGE).unwrap();
        assert_eq!(left, [(write(39, 0).target().1.clone(), vec![7; 1 << 20].into())]);
    }
}

#[test]
fn each_step_of_compaction_releases_many_pages() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Content, cache_kib: 64 };
    let mut engine = Sqlite::open(&options).unwrap();
    let writes: Vec<Write> = (0..40).map(|number| write(number, 1 << 20)).collect();
    for write in &writes {
        engine.apply(std::slice::from_ref(write), Durability::Durable).unwrap();
    }
    let deletions: Vec<Write> =
        writes.iter().map(|write| Write::Delete(SPACE, write.target().1.clone())).collect();
    engine.apply(&deletions, Durability::Durable).unwrap();
    let mut unused = engine.unused_pages().unwrap();
    assert!(unused > 2 * i64::from(PAGES));
    while unused > 0 {
        engine.release_some().unwrap();
        unused = (unused - i64::from(PAGES)).max(0);
        assert_eq!(engine.unused_pages().unwrap(), unused);
    }
}

#[test]
fn table_of_refused_batch_is_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Content, cache_kib: 64 };
    let mut engine = Sqlite::open(&options).unwrap();
    engine.connection.pragma_update(None, "max_page_count", 6).unwrap();
    let outcome = engine.apply(&[write(0, 1 << 20)], Durability::Durable);
    assert!(matches!(outcome, Err(ApplyError::Refused(StorageError::Full { .. }))), "{outcome:?}");
    engine.connection.pragma_update(None, "max_page_count", 100_000).unwrap();
    engine.apply(&[write(0, 10)], Durability::Durable).unwrap();
    assert!(engine.reader().unwrap().get(SPACE, write(0, 0).target().1).unwrap().is_some());
}

#[test]
fn sync_writes_only_after_unsynced_commits() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Records, cache_kib: 64 };
    let mut engine = Sqlite::open(&options).unwrap();
    let length = |engine: &Sqlite| std::fs::metadata(&engine.log).unwrap().len();
    engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
    let before = length(&engine);
    engine.sync().unwrap();
    let after = length(&engine);
    assert!(after > before, "an empty commit would not reach the disk");
    engine.sync().unwrap();
    assert_eq!(length(&engine), after);
}

#[test]
fn durable_commit_without_change_syncs_earlier_commits() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Records, cache_kib: 64 };
    let mut engine = Sqlite::open(&options).unwrap();
    let length = |engine: &Sqlite| std::fs::metadata(&engine.log).unwrap().len();
    let absent = Write::Delete(SPACE, write(1, 0).target().1.clone());
    for unchanged in [absent, write(0, 10)] {
        engine.apply(&[write(0, 20)], Durability::Buffered).unwrap();
        engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
        let before = length(&engine);
        engine.apply(std::slice::from_ref(&unchanged), Durability::Durable).unwrap();
        let after = length(&engine);
        assert!(after > before, "an empty commit would not reach the disk");
        engine.apply(&[unchanged], Durability::Durable).unwrap();
        assert_eq!(length(&engine), after, "everything is durable already");
    }
}

#[test]
fn log_stays_bounded_with_overlapping_readers() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Records, cache_kib: 1024 };
    let mut engine = Sqlite::open(&options).unwrap();
    engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
    let mut readers = [engine.reader().unwrap(), engine.reader().unwrap()];
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let begin = |reader: &SqliteReader| {
        reader.connection.execute_batch("BEGIN; SELECT * FROM space_s LIMIT 1").unwrap();
    };
    let mut longest = 0;
    std::thread::scope(|scope| {
        begin(&readers[0]);
        scope.spawn(move || {
            // The next reader starts before the previous one ends.
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                begin(&readers[1]);
                readers[0].connection.execute_batch("COMMIT").unwrap();
                readers.swap(0, 1);
                // A long read: it outlasts commits.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        for number in 0..60u32 {
            let put = |part| {
                let key = Key::new(vec![number as u8 % 4, part]).unwrap();
                // A changed value: SQLite does not write an equal one.
                Write::Put(SPACE, key, vec![number as u8; 256 << 10].into())
            };
            let writes: Vec<Write> = (0..8).map(put).collect();
            engine.apply(&writes, Durability::Buffered).unwrap();
            longest = longest.max(std::fs::metadata(&engine.log).unwrap().len());
        }
        drop(stop);
    });
    assert!(longest < 64 << 20, "120 MiB were written, and the log grew to {longest} bytes");
}

/// A backup of another process, for example.
#[test]
fn commits_after_a_blocked_checkpoint_run_none() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Records, cache_kib: 1024 };
    let mut engine = Sqlite::open(&options).unwrap();
    engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
    let reader = engine.reader().unwrap();
    reader.connection.execute_batch("BEGIN; SELECT * FROM space_s LIMIT 1").unwrap();
    let mut next = 0;
    let mut commit = |engine: &mut Sqlite| {
        next += 1;
        engine.apply(&[write(next, MAX_VALUE)], Durability::Buffered).unwrap();
    };
    while engine.checkpoints.log_length() < TRUNCATE_LOG {
        commit(&mut engine);
    }
    assert!(engine.checkpoints.next.is_some(), "the next checkpoint is delayed");
    // Each attempt would change the time of the next one.
    let later = Some(Instant::now() + Duration::from_secs(3600));
    engine.checkpoints.next = later;
    (0..20).for_each(|_| commit(&mut engine));
    assert_eq!(engine.checkpoints.next, later, "commits wait for no reader meanwhile");
    reader.connection.execute_batch("COMMIT").unwrap();
    engine.checkpoints.next = None;
    commit(&mut engine);
    assert_eq!(engine.checkpoints.log_length(), 0);
}

fn content(folder: &Path) -> Sqlite {
    Sqlite::open(&Options { path: folder.join("db"), role: Role::Content, cache_kib: 256 }).unwrap()
}

#[test]
fn full_content_refuses_whole_batches_and_continues() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = content(folder.path());
    engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
    engine.connection.pragma_update(None, "max_page_count", 20).unwrap();
    let mut reader = engine.reader().unwrap();
    // Far more than the cache: a part is already in the database.
    let writes: Vec<Write> = (0..20).map(|number| write(number, 100_000)).collect();
    let outcome = engine.apply(&writes, Durability::Buffered);
    assert!(matches!(outcome, Err(ApplyError::Refused(StorageError::Full { .. }))), "{outcome:?}");
    let there = reader.scan(SPACE, &KeyRange::all(), 1000, MAX_PAGE).unwrap();
    assert_eq!(there.iter().map(|(_, value)| value.len()).collect::<Vec<_>>(), [10]);
    engine.connection.pragma_update(None, "max_page_count", 100_000).unwrap();
    engine.apply(&writes, Durability::Buffered).unwrap();
    assert_eq!(reader.scan(SPACE, &KeyRange::all(), 1000, 20 * MAX_PAGE).unwrap().len(), 20);
}

#[test]
fn content_read_by_another_process_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = content(folder.path());
    engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
    engine.connection.busy_timeout(Duration::ZERO).unwrap();
    // This connection does not use the lock of the engine.
    let other = Connection::open(folder.path().join("db")).unwrap();
    other.execute_batch("BEGIN; SELECT * FROM space_s").unwrap();
    let outcome = engine.apply(&[write(1, 10)], Durability::Buffered);
    assert!(matches!(outcome, Err(ApplyError::Refused(StorageError::Locked { .. }))), "{outcome:?}");
    // SQLite waits once, not whenever the cache is full.
    static WAITS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = |_| {
        WAITS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        false
    };
    engine.connection.busy_handler(Some(count)).unwrap();
    let large: Vec<Write> = (1..9).map(|number| write(number, 1 << 20)).collect();
    let outcome = engine.apply(&large, Durability::Buffered);
    assert!(matches!(outcome, Err(ApplyError::Refused(StorageError::Locked { .. }))), "{outcome:?}");
    assert_eq!(WAITS.load(std::sync::atomic::Ordering::SeqCst), 1);
    other.execute_batch("COMMIT").unwrap();
    engine.apply(&large, Durability::Buffered).unwrap();
}

#[test]
fn every_content_commit_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let count = |engine: &Sqlite| -> i64 {
        let count = "SELECT count FROM enjambre_sync";
        engine.connection.query_row(count, [], |row| row.get(0)).unwrap()
    };
    let mut engine = content(folder.path());
    engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
    let level: i64 = engine.connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    assert_eq!(level, 2, "FULL");
    let before = count(&engine);
    engine.sync().unwrap();
    assert_eq!(count(&engine), before, "nothing is left to sync");
    drop(engine);
    // The last commit before a kill may not be durable.
    let mut engine = content(folder.path());
    engine.sync().unwrap();
    assert_eq!(count(&engine), before + 1);
}

#[test]
fn journal_is_kept_and_truncated() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = content(folder.path());
    for byte in 0..2u8 {
        let value = |number: u32| {
            let key = Key::new(number.to_be_bytes().to_vec()).unwrap();
            Write::Put(SPACE, key, vec![byte; 1 << 20].into())
        };
        // Overwritten pages are written to the journal.
        engine.apply(&(0..5).map(value).collect::<Vec<_>>(), Durability::Buffered).unwrap();
        let length = std::fs::metadata(&engine.log).unwrap().len();
        assert!((1..=KEPT_JOURNAL as u64).contains(&length), "{length}");
    }
}

/// A full disk can be freed by deletions: the library deletes 64 scattered values at once.
#[test]
fn deletion_fits_into_existing_journal() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = content(folder.path());
    // Most of each value is in its own pages; several values start in one page.
    let values: Vec<Write> = (0..512).map(|number| write(number, 72_000)).collect();
    values.chunks(100).for_each(|some| engine.apply(some, Durability::Buffered).unwrap());
    // Disables truncation.
    engine.connection.pragma_update(None, "journal_size_limit", -1).unwrap();
    let delete = |number: u32| Write::Delete(SPACE, write(number, 0).target().1.clone());
    let scattered: Vec<Write> = (0..64).map(|number| delete(number * 8)).collect();
    engine.apply(&scattered, Durability::Buffered).unwrap();
    let length = std::fs::metadata(&engine.log).unwrap().len();
    assert!(length < KEPT_JOURNAL as u64 + RESERVE / 2, "{length}");
}

#[test]
fn journal_of_earlier_process_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = content(folder.path());
    engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
    assert!(engine.log.exists());
    drop(engine);
    let mut engine = content(folder.path());
    assert!(!engine.log.exists(), "the old journal may be incomplete");
    engine.apply(&[write(1, 10)], Durability::Buffered).unwrap();
    assert!(engine.log.exists(), "the new journal is kept");
}

#[test]
fn concurrent_reads_and_commits_do_not_starve() {
    const READS: u32 = 10;
    const COMMITS: u32 = 2000;
    const LEN: usize = 70_000;
    let folder = tempfile::tempdir().unwrap();
    let mut engine = content(folder.path());
    let group = |byte: u8| {
        let value = |number: u8| {
            let key = Key::new(vec![number]).unwrap();
            Write::Put(SPACE, key, vec![byte; LEN].into())
        };
        (0..4).map(value).collect::<Vec<_>>()
    };
    engine.apply(&group(0), Durability::Buffered).unwrap();
    let reading = std::sync::atomic::AtomicU32::new(2);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for _ in 0..2 {
            let mut reader = engine.reader().unwrap();
            let (reading, stop) = (&reading, &stop);
            readers.push(scope.spawn(move || {
                let mut reads = 0;
                // Without a pause: the writer must make progress too.
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let page = reader.scan(SPACE, &KeyRange::all(), 10, 10 << 20).unwrap();
                    assert_eq!(page.len(), 4);
                    let byte = page[0].1[0];
                    assert!(page.iter().all(|(_, value)| value == &vec![byte; LEN]), "a mixture of commits");
                    reads += 1;
                    if reads == READS {
                        reading.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                }
            }));
        }
        let mut commits = 0;
        let enough = |commits| commits >= 10 && reading.load(std::sync::atomic::Ordering::SeqCst) == 0;
        while commits < COMMITS && !enough(commits) && readers.iter().all(|reader| !reader.is_finished()) {
            commits += 1;
            engine.apply(&group(commits as u8), Durability::Buffered).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(commits < COMMITS, "the readers starved");
    });
}
