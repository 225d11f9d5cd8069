//! A swarm on one machine: one source, and peers that all begin at once, as separate processes on loopback; prints
//! the time until the last is complete, what the source sent, and the processor time.
//!
//!     cargo run --release -p enjambre-tests --example swarm -- [MIB [PEERS [LIMIT [SETUP]]]]
//!
//! MIB is the size of the file, 512 unless given, PEERS how many there are, 4 unless given, LIMIT what the source may
//! send in a second, such as `50MB/s`, or `none`, and SETUP one of `sqlite`, `sqlite+files`, `sled` and `sled+files`,
//! `sqlite+files` unless given. Every peer is a daemon that is told to `get`. All of it is compared at the end.
//! The figures come from `/proc`, so this is for Linux.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::figures;
use enjambre_tests::node::{Setup, World};

/// How long the swarm may take.
const PATIENCE: Duration = Duration::from_secs(900);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mib: u64 = args.next().map_or(Ok(512), |text| text.parse()).context("MIB is a number")?;
    let peers: usize = args.next().map_or(Ok(4), |text| text.parse()).context("PEERS is a number")?;
    let limit = args.next().filter(|text| text != "none");
    let setup: Setup = args.next().as_deref().unwrap_or("sqlite+files").parse().map_err(Error::msg)?;

    let world = World::new(setup);
    let (file, hash) = world.file("large.bin", mib * MIB);
    let mut tracker = world.tracker("tracker");
    let limit = limit.map(|limit| format!("limits.upload={limit:?}"));
    let settings: Vec<&str> = limit.iter().map(String::as_str).collect();
    let mut source = world.running_peer_with("source", &[&tracker], &settings);
    source.publish(&file, &[]);
    let mut nodes: Vec<_> =
        (0..peers).map(|number| world.running_peer(&format!("peer{number}"), &[&tracker])).collect();

    let mut pids = vec![tracker.pid(), source.pid()];
    pids.extend(nodes.iter_mut().map(|node| node.pid()));
    let cpu = || pids.iter().filter_map(|pid| figures::of(*pid)).map(|used| used.cpu_seconds).sum::<f64>();
    let cpu_before = cpu();
    let begun = Instant::now();
    let gets: Vec<_> = nodes.iter().map(|node| node.spawn(["get", "large.bin"])).collect();
    let mut times = Vec::new();
    for get in gets {
        get.wait(PATIENCE).ok();
        times.push(begun.elapsed().as_secs_f64());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let used = cpu() - cpu_before;
    let sent = source.sent();
    let by_peers: u64 = nodes.iter().map(|node| node.sent()).sum();
    println!(
        "{mib} MiB to {peers}: {seconds:.2} s; the source sent {} MiB ({:.2} copies), the peers {} MiB; {used:.2} s of CPU",
        sent / MIB,
        sent as f64 / (mib * MIB) as f64,
        by_peers / MIB
    );
    let peaks: Vec<_> =
        pids.iter().filter_map(|pid| figures::of(*pid)).map(|used| used.peak_kib / 1024).collect();
    println!("   ended by {times:.2?} s; most memory of the tracker, the source and the peers {peaks:?} MiB");
    for (number, node) in nodes.iter().enumerate() {
        let path = world.path(format!("{number}.bin"));
        node.run([OsStr::new("export"), OsStr::new("large.bin"), OsStr::new("-o"), path.as_os_str()]).ok();
        ensure!(hash_of(&path) == hash, "what peer {number} has is another file");
        std::fs::remove_file(&path)?;
    }
    Ok(())
}
