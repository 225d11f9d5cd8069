//! Benchmark of a swarm: one source and several peers that start downloading at the same time, as separate processes on
//! loopback. Prints the time until all peers are complete, the bytes sent by the source, and the CPU time.
//!
//!     cargo run --release -p enjambre-tests --example swarm -- [MIB [PEERS [LIMIT [SETUP]]]]
//!
//! MIB is the size of the file (default 512), PEERS the number of peers (default 4), LIMIT the upload limit of the source, such
//! as `50MB/s` (default `none`), and SETUP one of `sqlite`, `sqlite+files`, `sled` and `sled+files` (default `sqlite+files`).
//! Every peer runs as a daemon. Downloaded content is compared at the end. CPU time and memory are read from `/proc` (Linux
//! only).

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use enjambre_tests::content::{MIB, hash_of};
use enjambre_tests::node::World;
use enjambre_tests::process_stats;
use enjambre_tests::setup::Setup;

/// The timeout of a download.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(900);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mib: u64 = args.next().map_or(Ok(512), |text| text.parse()).context("MIB must be a number")?;
    let peers: usize = args.next().map_or(Ok(4), |text| text.parse()).context("PEERS must be a number")?;
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
    let cpu =
        || pids.iter().filter_map(|pid| process_stats::usage(*pid)).map(|used| used.cpu_seconds).sum::<f64>();
    let cpu_before = cpu();
    let started = Instant::now();
    let gets: Vec<_> = nodes.iter().map(|node| node.spawn(["get", "large.bin"])).collect();
    let mut times = Vec::new();
    for get in gets {
        get.wait(DOWNLOAD_TIMEOUT).ok();
        times.push(started.elapsed().as_secs_f64());
    }
    let seconds = started.elapsed().as_secs_f64();
    let used = cpu() - cpu_before;
    let sent = source.sent();
    let by_peers: u64 = nodes.iter().map(|node| node.sent()).sum();
    println!(
        "{mib} MiB to {peers} peers: {seconds:.2} s; sent by the source: {} MiB ({:.2} copies), by the peers: {} MiB; CPU time {used:.2} s",
        sent / MIB,
        sent as f64 / (mib * MIB) as f64,
        by_peers / MIB
    );
    let peaks: Vec<_> =
        pids.iter().filter_map(|pid| process_stats::usage(*pid)).map(|used| used.peak_kib / 1024).collect();
    println!("   completed after {times:.2?} s; peak memory of tracker, source and peers: {peaks:?} MiB");
    for (number, node) in nodes.iter().enumerate() {
        let path = world.path(format!("{number}.bin"));
        node.run([OsStr::new("export"), OsStr::new("large.bin"), OsStr::new("-o"), path.as_os_str()]).ok();
        ensure!(hash_of(&path) == hash, "peer {number} has wrong content");
        std::fs::remove_file(&path)?;
    }
    Ok(())
}
