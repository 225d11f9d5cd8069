//! Benchmark of a large file and a directory of a few thousand files, with separate processes on loopback and every storage
//! backend, including `kill -9`, restart and resume. Prints throughput, CPU time and peak memory.
//!
//!     cargo run --release -p enjambre-tests --example big -- [MIB [SETUP...]]
//!
//! MIB is the size of the file (default 1024). SETUP is `sqlite`, `sqlite+files`, `sled` or `sled+files` (default: all except
//! the last). The temporary directory (`TMPDIR`) needs about six times the size of the file. Downloaded content is compared; a
//! difference fails the run. `CPU s` is the CPU time of all processes during the step. `peak` is the peak resident memory
//! (`VmHWM`) of a daemon since its start and of a command during its run. Both are read from `/proc` (Linux only). The number
//! of bytes sent again includes the contents of network buffers at each of the two kills.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use enjambre_tests::content::{MIB, hash_of, read_tree};
use enjambre_tests::node::{Peer, Tracker, World};
use enjambre_tests::process::Process;
use enjambre_tests::process_stats::{self, Usage};
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::wait_until;

/// The timeout of a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(900);
/// The minimum number of files in the directory, if as many are available.
const MIN_FILES: usize = 3000;
/// The maximum number of bytes to download again after `kill -9`.
const MAX_RESUME_LOSS: u64 = 8 * MIB;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mib = args.next().map_or(Ok(1024), |text| text.parse()).context("MIB must be a number")?;
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

/// A daemon whose resource usage is measured.
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
    println!("   (the directory has {} files, {} MiB)", tree.len(), folder_size / MIB);

    let mut tracker = world.tracker("tracker");
    let mut a = world.running_peer("a", &[&tracker]);
    let watched = [watch("tracker", &mut tracker), watch_peer("A", &mut a)];
    step("publish the file", size, &watched, || a.spawn([OsStr::new("publish"), file.as_os_str()]));
    step("publish the directory", folder_size, &watched, || {
        a.spawn([OsStr::new("publish"), folder.as_os_str()])
    });

    // To a path, without a daemon.
    let b = world.peer("b", &[&tracker]);
    let path = world.path("b.bin");
    step("get -o without a daemon", size, &watched, || get_to(&b, "large.bin", &path));
    check_file(&path, &hash)?;
    let path = world.path("b-folder");
    step("get -o of the directory without a daemon", folder_size, &watched, || get_to(&b, "folder", &path));
    ensure!(read_tree(&path) == tree, "the downloaded directory differs");
    fs::remove_dir_all(&path)?;

    // Into the library of a daemon.
    let mut c = world.running_peer("c", &[&tracker]);
    let watched = [watch("tracker", &mut tracker), watch_peer("A", &mut a), watch_peer("C", &mut c)];
    step("get into the library of the daemon C", size, &watched, || c.spawn(["get", "large.bin", "--sync"]));
    step("get of the directory into the library of C", folder_size, &watched, || {
        c.spawn(["get", "folder", "--sync"])
    });

    // The publisher is killed and its files are deleted.
    a.kill();
    fs::remove_file(&file)?;
    fs::remove_dir_all(&folder)?;
    let watched = [watch("tracker", &mut tracker), watch_peer("C", &mut c)];
    let d = world.peer("d", &[&tracker]);
    let path = world.path("d.bin");
    step("A killed: get -o from the library of C", size, &watched, || get_to(&d, "large.bin", &path));
    check_file(&path, &hash)?;
    let path = world.path("d-folder");
    step("A killed: get -o of the directory from C", folder_size, &watched, || get_to(&d, "folder", &path));
    ensure!(read_tree(&path) == tree, "the directory downloaded from C differs");
    fs::remove_dir_all(&path)?;

    // Tracker and provider are killed and restarted.
    tracker.kill();
    c.kill();
    let started = Instant::now();
    tracker.start();
    c.start();
    let e = world.peer("e", &[&tracker]);
    wait_until("C offers the file again", STEP_TIMEOUT, || {
        (e.providers("large.bin") >= Some(1)).then_some(())
    });
    println!(
        "{:<44} {:>7.2}",
        "kill -9 of tracker and C, offered again after",
        started.elapsed().as_secs_f64()
    );
    let watched = [watch("tracker", &mut tracker), watch_peer("C", &mut c)];
    let path = world.path("e.bin");
    step("then get -o from C", size, &watched, || get_to(&e, "large.bin", &path));
    check_file(&path, &hash)?;
    let path = world.path("e-folder");
    step("then get -o of the directory from C", folder_size, &watched, || get_to(&e, "folder", &path));
    ensure!(read_tree(&path) == tree, "the directory downloaded from the restarted C differs");

    // A downloader is killed half-way and resumes, into its library and to a path.
    for name in ["f", "g"] {
        let peer = world.peer(name, &[&tracker]);
        let path = world.path(format!("{name}.bin"));
        let mut args = vec!["get", "large.bin", "--json"];
        if name == "g" {
            args.extend(["-o", path.to_str().context("the path is not valid UTF-8")?]);
        }
        let sent = c.sent();
        let mut get = peer.spawn(&args);
        let killed_at = get.wait_event(|event| event["done"].as_u64().filter(|done| *done >= size / 2));
        get.kill();
        // Slowly, so that the first event reports little more than the resumed bytes.
        let limit = ["--set", "limits.download=\"256KiB/s\""];
        let mut get = peer.spawn(args.iter().chain(&limit));
        let resumed_at = get.wait_event(|event| event["done"].as_u64().filter(|done| *done > 0));
        get.kill();
        peer.spawn(&args).wait(STEP_TIMEOUT).ok();
        let resent = (c.sent() - sent).saturating_sub(size);
        println!(
            "   resume {}: killed after {} MiB, resumed at {} MiB; C sent {:.1} MiB more than the file size",
            if name == "g" { "to a path" } else { "in the library" },
            killed_at / MIB,
            resumed_at / MIB,
            resent as f64 / MIB as f64
        );
        ensure!(
            resumed_at + MAX_RESUME_LOSS >= killed_at,
            "resume lost more than {} MiB",
            MAX_RESUME_LOSS / MIB
        );
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
    ensure!(hash_of(path) == hash, "{} differs from the original", path.display());
    fs::remove_file(path)?;
    Ok(())
}

/// Runs a command and prints its measurements.
fn step(title: &str, size: u64, watched: &[Watched], start: impl FnOnce() -> Process) {
    let cpu = || -> f64 {
        let daemons = watched.iter().filter_map(|daemon| process_stats::usage(daemon.pid));
        process_stats::cpu_of_ended_children().unwrap_or_default()
            + daemons.map(|daemon| daemon.cpu_seconds).sum::<f64>()
    };
    let cpu_before = cpu();
    let started = Instant::now();
    let mut process = start();
    let mut command = Usage::default();
    wait_until(title, STEP_TIMEOUT, || {
        command = process_stats::usage(process.pid()).unwrap_or(command);
        (!process.is_running()).then_some(())
    });
    let seconds = started.elapsed().as_secs_f64();
    process.wait(STEP_TIMEOUT).ok();
    let used = cpu() - cpu_before;
    let mut peaks: Vec<String> = vec![format!("command {}", command.peak_kib / 1024)];
    peaks.extend(watched.iter().map(|daemon| {
        let peak = process_stats::usage(daemon.pid).unwrap_or_default().peak_kib / 1024;
        format!("{} {peak}", daemon.name)
    }));
    let rate = size as f64 / 1e6 / seconds;
    println!("{title:<44} {seconds:>7.2} {rate:>7.0} {used:>7.2}  {}", peaks.join(", "));
}

/// Copies crate sources from the cargo registry until there are enough files. Returns their size in bytes.
fn copy_real_files(target: &Path) -> Result<u64> {
    let home = std::env::var_os("CARGO_HOME")
        .map_or_else(|| std::env::home_dir().unwrap_or_default().join(".cargo"), PathBuf::from);
    let registry = home.join("registry/src");
    let (mut count, mut size) = (0, 0);
    let mut folders = vec![registry.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = target.join(entry.path().strip_prefix(&registry)?);
                fs::create_dir_all(path.parent().context("a file has a parent")?)?;
                size += fs::copy(entry.path(), &path)?;
                count += 1;
            }
        }
        if count >= MIN_FILES {
            break;
        }
    }
    Ok(size)
}
