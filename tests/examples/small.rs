//! Thousands of small files through separate processes on loopback: published, fetched to a path and into a library,
//! published again; prints times, processor time and files a second.
//!
//!     cargo run --release -p enjambre-tests --example small -- [FILES [KIB]]
//!
//! FILES is how many there are, 1000 unless given, KIB how large each is, 10 unless given. Everything that arrives is
//! compared; a difference ends the run with a panic. `CPU s` is what all processes together used during the step.
//! The figures come from `/proc`, so this is for Linux.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enjambre_tests::content::{read_tree, write_file};
use enjambre_tests::figures;
use enjambre_tests::node::{Peer, World};
use enjambre_tests::process::Process;

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let files: u64 = args.next().map_or(Ok(1000), |text| text.parse()).context("FILES is a number")?;
    let kib: u64 = args.next().map_or(Ok(10), |text| text.parse()).context("KIB is a number")?;
    let world = World::default();
    let folder = world.path("folder");
    for number in 0..files {
        let path = folder.join(format!("{:03}/{number}", number % 100));
        fs::create_dir_all(path.parent().context("it is in a folder")?)?;
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
        step("get -o, alone", &|| get_to(&peer, &out));
        ensure!(read_tree(&out) == tree, "the folder arrived with differences");
    }
    let peer = world.peer("synced", &[&tracker]);
    let out = world.path("out-synced");
    step("get -o --sync, alone", &|| peer.spawn(args_of(&["get", "folder", "--sync", "-o"], &out)));
    step("get -o again, all of it there", &|| get_to(&peer, &out));
    step("get into the library of a daemon", &|| c.spawn(["get", "folder"]));
    let out = world.path("exported");
    step("export from there", &|| c.spawn(args_of(&["export", "folder", "-o"], &out)));
    ensure!(read_tree(&out) == tree, "the folder was exported with differences");
    Ok(())
}

fn args_of<'a>(first: &[&'a str], path: &'a Path) -> Vec<&'a OsStr> {
    first.iter().map(|arg| OsStr::new(*arg)).chain([path.as_os_str()]).collect()
}

fn get_to(peer: &Peer, path: &Path) -> Process {
    peer.spawn(args_of(&["get", "folder", "-o"], path))
}

/// Runs one command to its end, and prints what it took.
fn step(title: &str, files: u64, daemons: &[u32], start: &dyn Fn() -> Process) {
    let cpu = || -> f64 {
        let daemons = daemons.iter().filter_map(|daemon| figures::of(*daemon));
        figures::of_ended_children().unwrap_or_default() + daemons.map(|used| used.cpu_seconds).sum::<f64>()
    };
    let cpu_before = cpu();
    let begun = Instant::now();
    let mut process = start();
    while process.is_running() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = begun.elapsed().as_secs_f64();
    process.wait(PATIENCE).ok();
    let rate = files as f64 / seconds;
    println!("{title:<44} {seconds:>7.3} {:>7.2} {rate:>9.0}", cpu() - cpu_before);
}
