//! Benchmark of directories of small files: publish, download to a path and into a library, and publish again, with separate
//! processes on loopback. Prints time, CPU time and files per second.
//!
//!     cargo run --release -p enjambre-tests --example small -- [FILES [KIB]]
//!
//! FILES is the number of files (default 1000), KIB the size of each (default 10). Downloaded content is compared; a difference
//! fails the run. `CPU s` is the CPU time of all processes, read from `/proc` (Linux only).

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enjambre_tests::content::{read_tree, write_file};
use enjambre_tests::node::{Peer, World};
use enjambre_tests::process::Process;
use enjambre_tests::process_stats;

/// The timeout of a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(300);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let files: u64 = args.next().map_or(Ok(1000), |text| text.parse()).context("FILES must be a number")?;
    let kib: u64 = args.next().map_or(Ok(10), |text| text.parse()).context("KIB must be a number")?;
    let world = World::default();
    let folder = world.path("folder");
    for number in 0..files {
        let path = folder.join(format!("{:03}/{number}", number % 100));
        fs::create_dir_all(path.parent().context("a file has a parent")?)?;
        write_file(&path, kib * 1024, number);
    }
    let tree = read_tree(&folder);
    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    let mut c = world.running_peer("c", &[&tracker]);
    let daemons = [tracker.pid(), a.pid(), c.pid()];
    println!("{files} files of {kib} KiB\n{:<44} {:>7} {:>7} {:>9}", "step", "s", "CPU s", "files/s");
    let step = |title: &str, start: &dyn Fn() -> Process| step(title, files, &daemons, start);

    step("publish", &|| a.spawn(args_of(&["publish"], &folder)));
    step("publish again, unchanged", &|| a.spawn(args_of(&["publish"], &folder)));
    write_file(&folder.join("000/0"), kib * 1024, files);
    step("publish again, one file changed", &|| a.spawn(args_of(&["publish"], &folder)));
    write_file(&folder.join("000/0"), kib * 1024, 0);
    step("publish again, changed back", &|| a.spawn(args_of(&["publish"], &folder)));
    for round in 1..=3 {
        let peer = world.peer(&format!("to-path-{round}"), &[&tracker]);
        let out = world.path(format!("out-{round}"));
        step("get -o without a daemon", &|| get_to(&peer, &out));
        ensure!(read_tree(&out) == tree, "the downloaded directory differs");
    }
    let peer = world.peer("synced", &[&tracker]);
    let out = world.path("out-synced");
    step("get -o --sync without a daemon", &|| peer.spawn(args_of(&["get", "folder", "--sync", "-o"], &out)));
    step("get -o again, already complete", &|| get_to(&peer, &out));
    step("get into the library of a daemon", &|| c.spawn(["get", "folder"]));
    let out = world.path("exported");
    step("export from the library", &|| c.spawn(args_of(&["export", "folder", "-o"], &out)));
    ensure!(read_tree(&out) == tree, "the exported directory differs");
    Ok(())
}

fn args_of<'a>(first: &[&'a str], path: &'a Path) -> Vec<&'a OsStr> {
    first.iter().map(|arg| OsStr::new(*arg)).chain([path.as_os_str()]).collect()
}

fn get_to(peer: &Peer, path: &Path) -> Process {
    peer.spawn(args_of(&["get", "folder", "-o"], path))
}

/// Runs a command and prints its measurements.
fn step(title: &str, files: u64, daemons: &[u32], start: &dyn Fn() -> Process) {
    let cpu = || -> f64 {
        let daemons = daemons.iter().filter_map(|daemon| process_stats::usage(*daemon));
        process_stats::cpu_of_ended_children().unwrap_or_default()
            + daemons.map(|used| used.cpu_seconds).sum::<f64>()
    };
    let cpu_before = cpu();
    let started = Instant::now();
    let mut process = start();
    while process.is_running() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = started.elapsed().as_secs_f64();
    process.wait(STEP_TIMEOUT).ok();
    let rate = files as f64 / seconds;
    println!("{title:<44} {seconds:>7.3} {:>7.2} {rate:>9.0}", cpu() - cpu_before);
}
