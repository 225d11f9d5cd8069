//! Failures at startup and shutdown: one clear line, an exit status and a bounded time.

use std::fs::{self, DirBuilder, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use enjambre_tests::binary;
use enjambre_tests::mount::in_namespace;
use enjambre_tests::node::{World, endpoint_in};
use enjambre_tests::process::{Output, Process};
use enjambre_tests::wait::{TIMEOUT, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// The guaranteed time for a shutdown after SIGTERM.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts a tracker or a peer without other nodes, with `data_dir` and additional `KEY=VALUE` settings.
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

/// Checks that the process has failed with one line that contains these words.
#[track_caller]
fn assert_refused(output: Output, words: &[&str]) {
    let output = output.expect_status(1);
    // The log may contain the cause as well.
    let errors = output.stderr.lines().filter(|line| !line.contains("WARN storage call failed"));
    assert_eq!((errors.count(), output.stdout.as_str()), (1, ""), "{}", output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "{word} is missing: {}", output.stderr);
    }
}

#[test]
fn occupied_port_is_reported() {
    let world = World::default();
    let mut first = start(&world, "tracker", &[]);
    let taken = first.wait_line(TIMEOUT, endpoint_in);
    for kind in ["tracker", "peer"] {
        let settings =
            [format!("{kind}.data_dir=\"other-{kind}\""), format!("transport.listen=[\"{taken}\"]")];
        assert_refused(start(&world, kind, &settings).wait(TIMEOUT), &[&taken, "transport.listen"]);
    }
}

#[test]
fn unwritable_data_dir_is_reported() {
    let world = World::default();
    // Fails even for root: a directory in a file, and a directory in the place of the lock file.
    fs::write(world.path("file"), "").unwrap();
    DirBuilder::new().recursive(true).mode(0o700).create(world.path("folder/lock")).unwrap();
    for kind in ["tracker", "peer"] {
        for (data_dir, named) in [("file/data", "file/data"), ("folder", "folder")] {
            let settings = [format!("{kind}.data_dir=\"{data_dir}\"")];
            assert_refused(start(&world, kind, &settings).wait(TIMEOUT), &[named]);
        }
    }
}

/// Requires root, or a kernel that allows mounts in user namespaces.
#[cfg(target_os = "linux")]
#[test]
fn full_disk_at_start_is_reported() {
    let world = World::default();
    fs::create_dir(world.path("disk")).unwrap();
    for (backend, size) in [("sqlite", "16k"), ("sled", "1m")] {
        for kind in ["tracker", "peer"] {
            let mount = format!("mount -t tmpfs -o size={size} none disk");
            let Some(mut command) = in_namespace("a full disk at the start", &mount) else { return };
            command.arg(binary::enjambre()).arg(kind).current_dir(world.path(""));
            let settings =
                [format!("{kind}.data_dir=\"disk/data\""), format!("storage.backend=\"{backend}\"")];
            command.args(arguments(kind, &settings));
            assert_refused(
                Process::start_command(&world.path(""), command).wait(TIMEOUT),
                &["no space left"],
            );
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn signal_ends_waiting_start() {
    let world = World::default();
    for kind in ["tracker", "peer"] {
        // The lock of another process makes the start wait.
        fs::create_dir(world.path(kind)).unwrap();
        let lock = File::create(world.path(kind).join("lock")).unwrap();
        lock.lock().unwrap();
        let mut process = start(&world, kind, &[]);
        let pid = process.pid();
        wait_for("the process handles SIGTERM", TIMEOUT, || catches_term(pid));
        process.signal(Signal::TERM);
        let output = process.wait(SHUTDOWN_TIMEOUT).ok();
        assert_eq!(output.stdout, "", "the node has started");
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
fn second_signal_exits_immediately() {
    let world = World::default();
    let mut tracker = world.tracker("tracker");
    let a = world.peer("a", &[&tracker]);
    let mut process = a.spawn(["peer"]);
    process.wait_line(TIMEOUT, endpoint_in);
    let (file, _) = world.file("film.bin", 1000);
    a.publish(&file, &[]);
    // A stopped tracker delays the `leave` request.
    tracker.signal(Signal::STOP);
    process.signal(Signal::TERM);
    wait_for("the shutdown starts", TIMEOUT, || process.stderr_text().contains("shutting down"));
    // A signal right after the first one is ignored. The id is valid until the test has waited for the process.
    let pid = Pid::from_raw(i32::try_from(process.pid()).unwrap()).unwrap();
    wait_for("the process exits", SHUTDOWN_TIMEOUT, || {
        let ended = !process.is_running();
        ended || kill_process(pid, Signal::TERM).is_err()
    });
    let output = process.wait(SHUTDOWN_TIMEOUT).expect_status(130);
    assert!(output.stderr.contains("second signal"), "{}", output.stderr);
    tracker.signal(Signal::CONT);
}

#[test]
fn two_signals_at_once_shut_down_cleanly() {
    let world = World::default();
    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    for node in [&mut *a, &mut *tracker] {
        // Both signals are pending when the process continues.
        for signal in [Signal::STOP, Signal::TERM, Signal::INT] {
            node.signal(signal);
        }
        let output = node.stop(Signal::CONT, SHUTDOWN_TIMEOUT).ok();
        assert!(!output.stderr.contains("second signal"), "{}", output.stderr);
        assert!(!node.folder().join("data/control").exists(), "the control socket remains");
    }
}

#[test]
fn tracker_with_closed_log_pipe_stops_on_signal() {
    let world = World::default();
    let mut child = Command::new(binary::enjambre())
        .arg("tracker")
        .args(arguments("tracker", &[]))
        .current_dir(world.path(""))
        .env("XDG_CONFIG_HOME", world.path("no-user-config"))
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
    // The tracker must not outlive a failing test.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        wait_until("the tracker exits", SHUTDOWN_TIMEOUT, || child.try_wait().unwrap())
    }));
    let _ = child.kill();
    assert!(endpoint_in(&line).is_some(), "{line}");
    assert!(ended.unwrap().success());
}
