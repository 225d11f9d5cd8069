//! Trackers: start time, idle memory and throughput.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use enjambre_tests::node::World;
use enjambre_tests::process::Process;
use enjambre_tests::setup::Setup;
use enjambre_tests::{binary, process_stats};

use super::{Case, Contender};
use crate::process::DEADLINE;
use crate::report::{Column, Sample};
use crate::stage::Stage;
use crate::udp_tracker::{Kind, UdpTracker};

/// The duration of each load.
const LOAD: Duration = Duration::from_secs(4);
/// The time after which a tracker without requests is idle.
const SETTLED: Duration = Duration::from_millis(500);

const READY: Column = Column { key: "ready_ms", title: "ready after ms", digits: 1 };
const IDLE: Column = Column { key: "idle_mib", title: "idle MiB", digits: 1 };
const BINARY: Column = Column { key: "binary_mib", title: "binary MiB", digits: 1 };
const ANNOUNCES: Column = Column { key: "announces", title: "announced files/s", digits: 0 };
const LOOK_UPS: Column = Column { key: "lookups", title: "lookups/s", digits: 0 };
const PROVIDERS: Column = Column { key: "providers", title: "lookups of providers/s", digits: 0 };
const ENTRY: Column = Column { key: "entry_bytes", title: "memory per entry, bytes", digits: 0 };

/// Measures the time from process start to readiness, the idle memory and the binary size.
pub(super) fn start<'a>(stage: &'a Stage, others: &[Kind]) -> Case<'a> {
    let mut contenders: Vec<Contender<'a>> = others.iter().map(|kind| udp_start(stage, *kind)).collect();
    let run = || {
        let room = stage.room()?;
        let size = std::fs::metadata(binary::enjambre())?.len();
        let world = World::new_in(room.path(), Setup::default());
        let begun = Instant::now();
        let mut tracker = world.tracker("tracker");
        Ok(started(tracker.pid(), begun.elapsed(), size))
    };
    contenders.push(Contender { name: "enjambre tracker".to_owned(), run: Box::new(run) });
    Case {
        name: "start",
        title: "A tracker starts with an empty directory".to_owned(),
        columns: vec![READY, IDLE, BINARY],
        reference: None,
        most_rounds: usize::MAX,
        is_large: false,
        contenders,
    }
}

fn udp_start(stage: &Stage, kind: Kind) -> Contender<'_> {
    let run = move || {
        let room = stage.room()?;
        let tracker = UdpTracker::start(kind, room.path())?;
        let path = std::fs::read_link(format!("/proc/{}/exe", tracker.process.pid()))?;
        Ok(started(tracker.process.pid(), tracker.ready, std::fs::metadata(path)?.len()))
    };
    Contender { name: kind.name().to_owned(), run: Box::new(run) }
}

fn started(pid: u32, ready: Duration, binary: u64) -> Sample {
    thread::sleep(SETTLED);
    Sample::from([
        ("ready_ms", ready.as_secs_f64() * 1000.0),
        ("idle_mib", process_stats::memory(pid, "VmRSS").unwrap_or_default() as f64 / 1024.0),
        ("binary_mib", binary as f64 / f64::from(1 << 20)),
    ])
}

/// A load on Enjambre's tracker, from the load generator of the tests.
struct Load {
    name: &'static str,
    scheme: &'static str,
    /// The number of files and of announcing peers per file for lookups; `None` for announcements of new files only.
    looked_up: Option<(u64, u64)>,
}

/// A typical catalogue: as many files as the other trackers get, with a few providers each.
const HOT: Option<(u64, u64)> = Some((4000, 4));
/// A catalogue several times larger than the lookup cache of a tracker.
const LARGE: Option<(u64, u64)> = Some((48_000, 16));
const LOADS: [Load; 4] = [
    Load { name: "enjambre tracker (durable)", scheme: "zmq", looked_up: None },
    Load { name: "enjambre tracker, hot files, zmq", scheme: "zmq", looked_up: HOT },
    Load { name: "enjambre tracker, hot files, tcp", scheme: "tcp", looked_up: HOT },
    Load { name: "enjambre tracker, beyond its cache", scheme: "zmq", looked_up: LARGE },
];

/// The load generator, built next to the program under test.
fn generator() -> PathBuf {
    binary::workspace().join("target/release/examples/tracker_load")
}

/// Measures announcements of new entries and lookups of single files.
pub(super) fn load<'a>(stage: &'a Stage, others: &[Kind]) -> Case<'a> {
    let mut contenders: Vec<Contender<'a>> = others.iter().map(|kind| udp_load(stage, *kind)).collect();
    contenders.extend(
        LOADS
            .iter()
            .map(|load| Contender { name: load.name.to_owned(), run: Box::new(|| under(load, stage)) }),
    );
    let of_all =
        |set: Option<(u64, u64)>| set.map(|(files, peers)| format!("{files} files with {peers} providers"));
    Case {
        name: "tracker",
        title: format!(
            "A tracker under load: hot ({}) and beyond the cache ({})",
            of_all(HOT).unwrap_or_default(),
            of_all(LARGE).unwrap_or_default()
        ),
        columns: vec![ANNOUNCES, LOOK_UPS, PROVIDERS, ENTRY],
        reference: None,
        most_rounds: 3,
        is_large: false,
        contenders,
    }
}

fn under(load: &Load, stage: &Stage) -> Result<Sample> {
    let room = stage.room()?;
    let mut command = Command::new(generator());
    command.arg("announce-new").args(["--scheme", load.scheme, "--seconds", &LOAD.as_secs().to_string()]);
    if let Some((files, peers)) = load.looked_up {
        command.args(["find", "providers", "--files", &files.to_string(), "--peers", &peers.to_string()]);
        command.args(["--entries", &(files * peers).to_string()]);
    }
    command.env(binary::OVERRIDE, binary::enjambre()).env("TMPDIR", room.path());
    let output = Process::start_command(room.path(), command).wait(DEADLINE).ok();
    let lines = output.json();
    let rate = |mode: &str, key: &str| {
        let line = lines.iter().find(|line| line["mode"] == mode);
        line.and_then(|line| line[key].as_f64()).with_context(|| format!("no {key} of {mode} in {lines:?}"))
    };
    if load.looked_up.is_some() {
        let (found, named) = (rate("find", "lookups_per_s")?, rate("providers", "lookups_per_s")?);
        return Ok(Sample::from([("lookups", found), ("providers", named)]));
    }
    let grown = rate("announce-new", "rss_kib")? - rate("announce-new", "rss_before_kib")?;
    Ok(Sample::from([
        ("announces", rate("announce-new", "entries_per_s")?),
        ("entry_bytes", grown * 1024.0 / rate("announce-new", "entries")?),
    ]))
}

fn udp_load(stage: &Stage, kind: Kind) -> Contender<'_> {
    let run = move || {
        let room = stage.room()?;
        let tracker = UdpTracker::start(kind, room.path())?;
        let memory =
            || process_stats::memory(tracker.process.pid(), "VmRSS").unwrap_or_default() as f64 * 1024.0;
        let before = memory();
        let first = AtomicU32::new(0);
        let announced = tracker.announce(LOAD, &first)?;
        let grown = memory() - before;
        let looked_up = tracker.look_up(LOAD)?;
        let seconds = LOAD.as_secs_f64();
        Ok(Sample::from([
            ("announces", announced as f64 / seconds),
            ("lookups", looked_up as f64 / seconds),
            ("entry_bytes", grown / f64::from(first.load(Ordering::Relaxed))),
        ]))
    };
    Contender { name: format!("{} (in memory)", kind.name()), run: Box::new(run) }
}
