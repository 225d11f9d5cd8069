//! What goes wrong at the start and at the end of a process: one clear line, a status, and a bounded time.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use enjambre_tests::binary;
use enjambre_tests::node::{World, endpoint_in};
use enjambre_tests::process::{Output, Process};
use enjambre_tests::wait::{LONG, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// What the product promises for SIGTERM.
const LEAVE: Duration = Duration::from_secs(5);

/// Starts a tracker or a peer that nobody else has to do with, with `data_dir` and some `KEY=VALUE`.
fn start(world: &World, kind: &str, settings: &[String]) -> Process {
    let mut command = Command::new(binary::enjambre());
    command.arg(kind).args(arguments(kind, settings)).current_dir(world.path(""));
    Process::start_command(&world.path(""), command)
}

fn arguments(kind: &str, settings: &[String]) -> Vec<String> {
    let own = ["transport.listen=[\"tcp://127.0.0.1:0\"]", "peer.trackers=[]"].map(str::to_owned);
    let data_dir = format!("{kind}.data_dir=\"{kind}\"");
    let all = own.into_iter().chain([data_dir]).chain(settings.iter().cloned());
    all.flat_map(|setting| ["--set".to_owned(), setting]).collect()
}

/// It said why it did not start, in one line with these words, and nothing else.
#[track_caller]
fn refused(output: Output, words: &[&str]) {
    let output = output.expect_status(1);
    assert_eq!((output.stderr.lines().count(), output.stdout.as_str()), (1, ""), "{}", output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "{word} is missing: {}", output.stderr);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let world = World::default();
    let mut first = start(&world, "tracker", &[]);
    let taken = first.wait_line(LONG, endpoint_in);
    for kind in ["tracker", "peer"] {
        let settings = [format!("{kind}.data_dir=\"other\""), format!("transport.listen=[\"{taken}\"]")];
        refused(start(&world, kind, &settings).wait(LONG), &[&taken, "transport.listen"]);
    }
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let world = World::default();
    // Not even root makes a folder inside of a file, or opens a folder for writing.
    fs::write(world.path("file"), "").unwrap();
    fs::create_dir_all(world.path("folder/lock")).unwrap();
    for kind in ["tracker", "peer"] {
        for (data_dir, named) in [("file/data", "file/data"), ("folder", "folder")] {
            let settings = [format!("{kind}.data_dir=\"{data_dir}\"")];
            refused(start(&world, kind, &settings).wait(LONG), &[named]);
        }
    }
}

/// Needs a kernel that lets everybody mount in a namespace of their own, or root.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_is_told() {
    let alone = || {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c"]);
        command
    };
    let possible = alone().arg("mount -t tmpfs none /tmp").stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("passed over: this system lets nobody mount a small disk");
        return;
    }
    let world = World::default();
    fs::create_dir(world.path("disk")).unwrap();
    for (backend, size) in [("sqlite", "16k"), ("sled", "1m")] {
        for kind in ["tracker", "peer"] {
            let mut command = alone();
            command.arg(format!("mount -t tmpfs -o size={size} none disk && exec \"$0\" \"$@\""));
            command.arg(binary::enjambre()).arg(kind).current_dir(world.path(""));
            let settings =
                [format!("{kind}.data_dir=\"disk/data\""), format!("storage.backend=\"{backend}\"")];
            command.args(arguments(kind, &settings));
            refused(Process::start_command(&world.path(""), command).wait(LONG), &["full"]);
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_ends_a_start_that_waits() {
    let world = World::default();
    for kind in ["tracker", "peer"] {
        // Another process has the folder, so that the start waits for it.
        fs::create_dir(world.path(kind)).unwrap();
        let lock = File::create(world.path(kind).join("lock")).unwrap();
        lock.lock().unwrap();
        let mut process = start(&world, kind, &[]);
        let pid = process.pid();
        wait_for("the process looks after signals", LONG, || catches_term(pid));
        process.signal(Signal::TERM);
        let output = process.wait(LEAVE).ok();
        assert_eq!(output.stdout, "", "it did not start");
    }
}

/// Whether a process has a handler for SIGTERM.
#[cfg(target_os = "linux")]
fn catches_term(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught & (1 << (Signal::TERM.as_raw() - 1)) != 0
}

#[test]
fn a_second_signal_does_not_wait() {
    let world = World::default();
    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    let (file, _) = world.file("film.bin", 1000);
    a.publish(&file, &[]);
    // Saying goodbye takes a while to somebody who does not listen.
    tracker.signal(Signal::STOP);
    a.signal(Signal::TERM);
    a.wait_stderr("shutting down");
    let output = a.stop(Signal::TERM, LEAVE).expect_status(1);
    assert!(output.stderr.contains("second signal"), "{}", output.stderr);
    tracker.signal(Signal::CONT);
}

#[test]
fn a_tracker_whose_log_nobody_reads_any_more_ends_when_asked() {
    let world = World::default();
    let mut child = Command::new(binary::enjambre())
        .arg("tracker")
        .args(arguments("tracker", &[]))
        .current_dir(world.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    // Whatever comes of it, nothing is left running.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        wait_until("the tracker ends", LEAVE, || child.try_wait().unwrap())
    }));
    let _ = child.kill();
    assert!(endpoint_in(&line).is_some(), "{line}");
    assert!(ended.unwrap().success());
}
