//! The benchmark program leaves neither processes nor directories behind, however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use enjambre_tests::wait::{TIMEOUT, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A tool that hangs, with a child of its own: it tells the ids of both and is never ready.
const HANGING: &str = "#!/bin/sh
if [ \"$1\" = --version ]; then echo 'rsync  version 0'; exit; fi
sleep 1000 &
echo $$ $! > \"$HANGS_HERE.new\" && mv \"$HANGS_HERE.new\" \"$HANGS_HERE\"
wait
";

/// The comparison while it waits for a tool that hangs.
struct Run {
    folder: TempDir,
    comparison: Child,
    /// The tool and its child.
    hanging: Vec<i32>,
}

impl Run {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).expect("a test's folder can be written");
        fs::create_dir(folder.path().join("work")).expect("a test's folder can be written");
        fs::write(bin.join("rsync"), HANGING).expect("a test's folder can be written");
        fs::set_permissions(bin.join("rsync"), fs::Permissions::from_mode(0o755))
            .expect("a test's folder can be written");
        let path = std::env::join_paths(
            [bin].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )
        .expect("folders without a colon");
        let told = folder.path().join("hanging");
        let comparison = Command::new(env!("CARGO_BIN_EXE_enjambre-bench"))
            .args(["--case", "single", "--tools", "rsync", "--rounds", "1", "--size", "1MiB", "--dir"])
            .arg(folder.path().join("work"))
            .env("PATH", path)
            .env("HANGS_HERE", &told)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be started");
        let text = wait_until("the tool that hangs", TIMEOUT, || fs::read_to_string(&told).ok());
        let hanging = text.split_whitespace().map(|id| id.parse().expect("a process id")).collect();
        Self { folder, comparison, hanging }
    }

    /// Fails unless everything is gone as soon as the comparison is.
    fn expect_nothing_left(mut self) -> ExitStatus {
        let status = wait_until("the comparison's end", TIMEOUT, || {
            self.comparison.try_wait().expect("the child is ours")
        });
        let left: Vec<_> =
            fs::read_dir(self.folder.path().join("work")).expect("the folder stays").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.hanging.len(), 2, "the tool and its child");
        for id in &self.hanging {
            assert!(!Path::new(&format!("/proc/{id}")).exists(), "process {id} is left");
        }
        status
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Where the test fails. What has ended cannot be killed.
        let _ = self.comparison.kill();
    }
}

#[test]
fn signal_removes_processes_and_directories() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let run = Run::start();
        kill_process(Pid::from_child(&run.comparison), signal).unwrap();
        assert_eq!(run.expect_nothing_left().code(), Some(code), "{signal:?}");
    }
}

#[test]
fn killed_worker_leaves_nothing_behind() {
    let run = Run::start();
    let stat = fs::read_to_string(format!("/proc/{}/stat", run.hanging[0])).unwrap();
    // Behind the name in parentheses: the state, then the parent.
    let parent = stat[stat.rfind(')').unwrap()..].split_whitespace().nth(2).unwrap().parse().unwrap();
    kill_process(Pid::from_raw(parent).unwrap(), Signal::KILL).unwrap();
    assert_eq!(run.expect_nothing_left().code(), Some(137));
}
