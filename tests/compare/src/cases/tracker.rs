//! Trackers: how soon they are ready, what they take when nothing happens, and what they bear.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use enjambre_tests::node::{Setup, World};
use enjambre_tests::process::Process;
use enjambre_tests::{binary, figures};
use serde_json::Value;

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

/// Announcements of entries that the tracker does not have, then look-ups of single files.
pub(super) fn load<'a>(stage: &'a Stage, others: &[Kind]) -> Case<'a> {
    let mut contenders: Vec<Contender<'a>> = others.iter().map(|kind| udp_load(stage, *kind)).collect();
    let run = || {
        let room = stage.room()?;
        let mut command = Command::new(binary::example("tracker_load"));
        command.args(["announce-new", "find", "providers", "--seconds", &LOAD.as_secs().to_string()]);
        command.env(binary::OVERRIDE, binary::enjambre()).env("TMPDIR", room.path());
        let output = Process::start_command(room.path(), command).wait(DEADLINE).ok();
        let lines = output.json();
        let mode = |name: &str| lines.iter().find(|line| line["mode"] == name);
        let number = |line: Option<&Value>, key: &str| line.and_then(|line| line[key].as_f64());
        let new = mode("announce-new");
        let rate = |line, key| number(line, key).with_context(|| format!("no {key} in {lines:?}"));
        let grown = rate(new, "rss_kib")? - rate(new, "rss_before_kib")?;
        Ok(Sample::from([
            ("announces", rate(new, "entries_per_s")?),
            ("look_ups", rate(mode("find"), "lookups_per_s")?),
            ("entry_bytes", grown * 1024.0 / rate(new, "entries")?),
        ]))
    };
    contenders.push(Contender { name: "enjambre tracker (durable)".to_owned(), run: Box::new(run) });
    Case {
        name: "tracker",
        title: "A tracker under load: new entries, then look-ups of single files".to_owned(),
        columns: vec![ANNOUNCES, LOOK_UPS, ENTRY],
        reference: None,
        most_rounds: 3,
        is_large: false,
        contenders,
    }
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
