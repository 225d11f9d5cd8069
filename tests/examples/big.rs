//! The heavy check: a large file and a few thousand real files through separate processes on loopback, over every
//! storage backend, with kills, restarts and a resume; prints speed, processor time and peak memory.
//!
//!     cargo run --release -p enjambre-tests --example big -- [MIB [SETUP...]]
//!
//! MIB is the size of the file, 1024 unless given. SETUP is `sqlite`, `sqlite+files`, `sled` or `sled+files`; all but
//! the last unless given. It needs about six times the size of the file in the temporary folder (`TMPDIR`).
//! Everything that arrives is compared; a difference ends the run with a panic. `CPU s` is what all processes
//! together used during the step. `peak` is `VmHWM`: of a daemon since its start, of a command until its end.
//! What was sent more than once includes, for each of two kills, what was on the way in buffers of the network.
//! The figures come from `/proc`, so this is for Linux.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use enjambre_tests::content::{MIB, hash_of, read_tree};
use enjambre_tests::figures::{self, Figures};
use enjambre_tests::node::{Peer, Setup, Tracker, World};
use enjambre_tests::process::Process;
use enjambre_tests::wait::wait_until;

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How many real files the folder has at least, where there are as many.
const FILES: usize = 3000;
/// What may have to be fetched again after `kill -9`.
const RESUME_LOSS: u64 = 8 * MIB;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mib = args.next().map_or(Ok(1024), |text| text.parse()).context("MIB is a number")?;
    let mut names: Vec<String> = args.collect();
    if names.is_empty() {
        names = ["sqlite", "sqlite+files", "sled"].map(str::to_owned).to_vec();
    }
    for name in &names {
        let setup: Setup = name.parse().map_err(Error::msg)?;
        println!("\n== {name}, a file of {mib} MiB");
        println!("{:<44} {:>7} {:>7} {:>7}  peak MiB", "step", "s", "MB/s", "CPU s");
        run(setup, mib * MIB)?;
    }
    Ok(())
}

/// A daemon that is watched during a step.
struct Watched {
    name: &'static str,
    pid: u32,
}

fn run(setup: Setup, size: u64) -> Result<()> {
    let world = World::new(setup);
    let (file, hash) = world.file("large.bin", size);
    let folder = world.path("folder");
    let folder_size = copy_real_files(&folder)?;
    let tree = read_tree(&folder);
    println!("   (the folder has {} files, {} MiB)", tree.len(), folder_size / MIB);

    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    let watched = [watch("tracker", &mut tracker), watch_peer("A", &mut a)];
    step("publish the file", size, &watched, || a.spawn([OsStr::new("publish"), file.as_os_str()]));
    step("publish the folder", folder_size, &watched, || {
        a.spawn([OsStr::new("publish"), folder.as_os_str()])
    });

    // Straight to a path, without a daemon.
    let b = world.peer("b", &[&tracker]);
    let path = world.path("b.bin");
    step("get -o, alone", size, &watched, || get_to(&b, "large.bin", &path));
    check_file(&path, &hash)?;
    let path = world.path("b-folder");
    step("get -o of the folder, alone", folder_size, &watched, || get_to(&b, "folder", &path));
    ensure!(read_tree(&path) == tree, "the folder arrived with differences");
    fs::remove_dir_all(&path)?;

    // Into the library of a daemon.
    let mut c = world.running_peer("c", &[&tracker]);
    let watched = [watch("tracker", &mut tracker), watch_peer("A", &mut a), watch_peer("C", &mut c)];
    step("get into the library, through the daemon C", size, &watched, || {
        c.spawn(["get", "large.bin", "--sync"])
    });
    step("get of the folder into the library of C", folder_size, &watched, || {
        c.spawn(["get", "folder", "--sync"])
    });

    // The publisher dies, and its files with it.
    a.kill();
    fs::remove_file(&file)?;
    fs::remove_dir_all(&folder)?;
    let watched = [watch("tracker", &mut tracker), watch_peer("C", &mut c)];
    let d = world.peer("d", &[&tracker]);
    let path = world.path("d.bin");
    step("A killed: get -o from the library of C", size, &watched, || get_to(&d, "large.bin", &path));
    check_file(&path, &hash)?;
    let path = world.path("d-folder");
    step("A killed: get -o of the folder from C", folder_size, &watched, || get_to(&d, "folder", &path));
    ensure!(read_tree(&path) == tree, "the folder arrived from C with differences");
    fs::remove_dir_all(&path)?;

    // Tracker and provider die and come back.
    tracker.kill();
    c.kill();
    let begun = Instant::now();
    tracker.start();
    c.start();
    let e = world.peer("e", &[&tracker]);
    wait_until("C offers the file again", PATIENCE, || (e.providers("large.bin") >= Some(1)).then_some(()));
    println!("{:<44} {:>7.2}", "tracker and C kill -9, offered again after", begun.elapsed().as_secs_f64());
    let watched = [watch("tracker", &mut tracker), watch_peer("C", &mut c)];
    let path = world.path("e.bin");
    step("then get -o from C", size, &watched, || get_to(&e, "large.bin", &path));
    check_file(&path, &hash)?;
    let path = world.path("e-folder");
    step("then get -o of the folder from C", folder_size, &watched, || get_to(&e, "folder", &path));
    ensure!(read_tree(&path) == tree, "the folder arrived from the restarted C with differences");

    // A downloader dies half-way and goes on, into its library and to a path.
    for name in ["f", "g"] {
        let peer = world.peer(name, &[&tracker]);
        let path = world.path(format!("{name}.bin"));
        let mut args = vec!["get", "large.bin", "--json"];
        if name == "g" {
            args.extend(["-o", path.to_str().context("a readable path")?]);
        }
        let sent = c.sent();
        let mut get = peer.spawn(&args);
        let killed_at = get.wait_event(|event| event["done"].as_u64().filter(|done| *done >= size / 2));
        get.kill();
        // Slowly, so that the first event says what was there and little more.
        let limit = ["--set", "limits.download=\"256KiB/s\""];
        let mut get = peer.spawn(args.iter().chain(&limit));
        let resumed_at = get.wait_event(|event| event["done"].as_u64().filter(|done| *done > 0));
        get.kill();
        peer.spawn(&args).wait(PATIENCE).ok();
        let again = (c.sent() - sent).saturating_sub(size);
        println!(
            "   resume {}: killed at {} MiB or a little later, went on at {} MiB; C sent {:.1} MiB more than the file",
            if name == "g" { "to a path" } else { "in the library" },
            killed_at / MIB,
            resumed_at / MIB,
            again as f64 / MIB as f64
        );
        ensure!(resumed_at + RESUME_LOSS >= killed_at, "too much was lost");
        if name == "f" {
            peer.run([OsStr::new("export"), OsStr::new("large.bin"), OsStr::new("-o"), path.as_os_str()])
                .ok();
        }
        check_file(&path, &hash)?;
    }
    Ok(())
}

fn watch(name: &'static str, tracker: &mut Tracker) -> Watched {
    Watched { name, pid: tracker.pid() }
}

fn watch_peer(name: &'static str, peer: &mut Peer) -> Watched {
    Watched { name, pid: peer.pid() }
}

fn get_to(peer: &Peer, name: &str, path: &Path) -> Process {
    peer.spawn([OsStr::new("get"), OsStr::new(name), OsStr::new("-o"), path.as_os_str()])
}

fn check_file(path: &Path, hash: &str) -> Result<()> {
    ensure!(hash_of(path) == hash, "{} arrived with differences", path.display());
    fs::remove_file(path)?;
    Ok(())
}

/// Runs one command to its end, and prints what it took.
fn step(title: &str, size: u64, watched: &[Watched], start: impl FnOnce() -> Process) {
    let cpu = || -> f64 {
        let daemons = watched.iter().filter_map(|daemon| figures::of(daemon.pid));
        figures::of_ended_children().unwrap_or_default()
            + daemons.map(|daemon| daemon.cpu_seconds).sum::<f64>()
    };
    let cpu_before = cpu();
    let begun = Instant::now();
    let mut process = start();
    let mut command = Figures::default();
    wait_until(title, PATIENCE, || {
        command = figures::of(process.pid()).unwrap_or(command);
        (!process.is_running()).then_some(())
    });
    let seconds = begun.elapsed().as_secs_f64();
    process.wait(PATIENCE).ok();
    let used = cpu() - cpu_before;
    let mut peaks: Vec<String> = vec![format!("command {}", command.peak_kib / 1024)];
    peaks.extend(watched.iter().map(|daemon| {
        let peak = figures::of(daemon.pid).unwrap_or_default().peak_kib / 1024;
        format!("{} {peak}", daemon.name)
    }));
    let rate = size as f64 / 1e6 / seconds;
    println!("{title:<44} {seconds:>7.2} {rate:>7.0} {used:>7.2}  {}", peaks.join(", "));
}

/// Copies crate sources out of cargo's own folder until there are enough files; returns their size in bytes.
fn copy_real_files(target: &Path) -> Result<u64> {
    let home = std::env::var_os("CARGO_HOME")
        .map_or_else(|| std::env::home_dir().unwrap_or_default().join(".cargo"), PathBuf::from);
    let registry = home.join("registry/src");
    let (mut count, mut size) = (0, 0);
    let mut folders = vec![registry.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = target.join(entry.path().strip_prefix(&registry)?);
                fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
                size += fs::copy(entry.path(), &path)?;
                count += 1;
            }
        }
        if count >= FILES {
            break;
        }
    }
    Ok(size)
}
