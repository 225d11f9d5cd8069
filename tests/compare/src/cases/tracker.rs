//! Trackers: how soon they are ready, what they take when nothing happens, and what they bear.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use enjambre_tests::node::{Setup, World};
use enjambre_tests::process::Process;
use enjambre_tests::{binary, figures};

use super::{Case, Contender};
use crate::process::DEADLINE;
use crate::report::{Column, Sample};
use crate::stage::Stage;
use crate::udp_tracker::{Kind, UdpTracker};

/// How long each load lasts.
const LOAD: Duration = Duration::from_secs(4);
/// After so long a tracker that nobody asks anything is idle.
const SETTLED: Duration = Duration::from_millis(500);

const READY: Column = Column { key: "ready_ms", title: "ready after ms", digits: 1 };
const IDLE: Column = Column { key: "idle_mib", title: "idle MiB", digits: 1 };
const BINARY: Column = Column { key: "binary_mib", title: "binary MiB", digits: 1 };
const ANNOUNCES: Column = Column { key: "announces", title: "announced files/s", digits: 0 };
const LOOK_UPS: Column = Column { key: "look_ups", title: "look-ups/s", digits: 0 };
const PROVIDERS: Column = Column { key: "providers", title: "look-ups of providers/s", digits: 0 };
const ENTRY: Column = Column { key: "entry_bytes", title: "memory per entry, bytes", digits: 0 };

/// From the start of the process until it can be asked; then its memory, and the size of the binary.
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
        title: "A tracker starts with an empty folder".to_owned(),
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
        ("idle_mib", figures::memory(pid, "VmRSS").unwrap_or_default() as f64 / 1024.0),
        ("binary_mib", binary as f64 / f64::from(1 << 20)),
    ])
}

/// What Enjambre's tracker is put under, by the load generator of the tests.
struct Load {
    name: &'static str,
    scheme: &'static str,
    /// So many files, each announced by so many peers, then look-ups of them; none for announcements alone, as many as it
    /// takes in the time.
    looked_up: Option<(u64, u64)>,
}

/// What is asked for every day: as many files as the others have, a few providers each.
const HOT: Option<(u64, u64)> = Some((4000, 4));
/// Several times more than fits into the memory that a tracker answers from.
const LARGE: Option<(u64, u64)> = Some((48_000, 16));
const LOADS: [Load; 4] = [
    Load { name: "enjambre tracker (durable)", scheme: "zmq", looked_up: None },
    Load { name: "enjambre tracker, hot files, zmq", scheme: "zmq", looked_up: HOT },
    Load { name: "enjambre tracker, hot files, tcp", scheme: "tcp", looked_up: HOT },
    Load { name: "enjambre tracker, beyond its cache", scheme: "zmq", looked_up: LARGE },
];

/// The load generator, built once: a compiler beside a measurement would spoil it.
pub(super) fn generator() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| binary::example("tracker_load"))
}

/// Announcements of entries that the tracker does not have, and look-ups of single files.
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
            "A tracker under load: new entries; look-ups of single files, hot ({}) and beyond the cache ({})",
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
        return Ok(Sample::from([("look_ups", found), ("providers", named)]));
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
        let memory = || figures::memory(tracker.process.pid(), "VmRSS").unwrap_or_default() as f64 * 1024.0;
        let before = memory();
        let first = AtomicU32::new(0);
        let announced = tracker.announce(LOAD, &first)?;
        let grown = memory() - before;
        let looked_up = tracker.look_up(LOAD)?;
        let seconds = LOAD.as_secs_f64();
        Ok(Sample::from([
            ("announces", announced as f64 / seconds),
            ("look_ups", looked_up as f64 / seconds),
            ("entry_bytes", grown / f64::from(first.load(Ordering::Relaxed))),
        ]))
    };
    Contender { name: format!("{} (in memory)", kind.name()), run: Box::new(run) }
}
