//! The engine alone: a full disk, the log, and what a sync writes.

use super::*;

const SPACE: Space = Space::new("s");

fn write(number: u32, len: usize) -> Write {
    Write::Put(SPACE, Key::new(number.to_be_bytes().to_vec()).unwrap(), vec![7; len].into())
}

#[test]
fn a_full_database_refuses_whole_and_goes_on() {
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
fn a_table_made_by_a_refused_batch_is_made_again() {
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
fn a_sync_of_something_writes_and_a_sync_of_nothing_does_not() {
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
fn a_durable_commit_that_changes_nothing_makes_the_earlier_ones_durable() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Records, cache_kib: 64 };
    let mut engine = Sqlite::open(&options).unwrap();
    let length = |engine: &Sqlite| std::fs::metadata(&engine.log).unwrap().len();
    let absent = Write::Delete(SPACE, write(1, 0).target().1.clone());
    for nothing in [absent, write(0, 10)] {
        engine.apply(&[write(0, 20)], Durability::Buffered).unwrap();
        engine.apply(&[write(0, 10)], Durability::Buffered).unwrap();
        let before = length(&engine);
        engine.apply(std::slice::from_ref(&nothing), Durability::Durable).unwrap();
        let after = length(&engine);
        assert!(after > before, "an empty commit would not reach the disk");
        engine.apply(&[nothing], Durability::Durable).unwrap();
        assert_eq!(length(&engine), after, "everything is durable already");
    }
}

#[test]
fn the_log_stays_bounded_though_there_is_always_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { path: folder.path().join("db"), role: Role::Content, cache_kib: 1024 };
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
            // The next one begins before the one before ends.
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                begin(&readers[1]);
                readers[0].connection.execute_batch("COMMIT").unwrap();
                readers.swap(0, 1);
                // A long page: it outlasts commits.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        for number in 0..60u32 {
            let put = |part| {
                let key = Key::new(vec![number as u8 % 4, part]).unwrap();
                // Another value than before, or SQLite would not write it.
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
