//! Pipes in place of files of the user. The library must not wait for their writers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, mkfifoat, renameat_with};

use super::*;
use crate::library::error::LibraryError;
use crate::library::linked::open_regular;
use crate::library::output::Target;

/// Runs work in a thread of its own, because a thread that waits for a writer cannot be ended.
fn without_waiting<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(60)).expect("the work waits for the writer of a pipe")
}

#[test]
fn pipe_is_not_opened_as_a_file() {
    let rig = Rig::new(false);
    let pipe = rig.path("a.bin.enjambre-part");
    mkfifoat(CWD, &pipe, Mode::RWXU).unwrap();
    let inode = fs::metadata(&pipe).unwrap().ino();
    let target = Target::resolve(&rig.to("a.bin", false)).unwrap().unwrap();
    let (file, part) =
        without_waiting(move || (open_regular(&pipe, OFlags::empty()), target.open_part(inode)));
    assert!(matches!(file, Err(LibraryError::BadPath { .. })), "{file:?}");
    assert!(matches!(part, Ok(None)), "{part:?}");
}

#[test]
fn file_is_not_awaited_if_a_pipe_replaces_it_meanwhile() {
    let rig = Rig::new(false);
    let (file, pipe) = (rig.path("a.bin"), rig.path("pipe"));
    fs::write(&file, "content").unwrap();
    mkfifoat(CWD, &pipe, Mode::RWXU).unwrap();
    let target = Target::resolve(&rig.to("a.bin", true)).unwrap().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let exchange = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            renameat_with(CWD, &file, CWD, &pipe, RenameFlags::EXCHANGE).unwrap();
        }
    });
    // Some of so many changes are between the inspection of the file and its opening.
    without_waiting(move || {
        let mut seen = [0, 0];
        while seen.iter().any(|count| *count < 2000) {
            match target.open_existing() {
                Ok(found) => seen[usize::from(found.is_some())] += 1,
                Err(LibraryError::Exists(_)) => seen[0] += 1,
                Err(error) => panic!("{error}"),
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    exchange.join().unwrap();
}
