//! A downloader is killed half-way with `kill -9` and resumes.

use std::ffi::OsStr;
use std::fs;

use anyhow::{Result, ensure};
use bytesize::ByteSize;
use enjambre_tests::content::MIB;
use enjambre_tests::node::World;
use enjambre_tests::setup::Setup;

use super::{Case, Contender};
use crate::machine::WarmMemory;
use crate::process::{DEADLINE, Work, race};
use crate::report::{CPU, Column, SECONDS, Sample};
use crate::stage::Stage;
use crate::tools::Variant;

const KILLED_AT: Column = Column { key: "killed_at", title: "killed at MiB", digits: 0 };
const AGAIN: Column = Column { key: "again_mib", title: "re-sent MiB", digits: 1 };

/// Measures the resumed half. Repeated bytes are counted at the source and include those in flight at the kill.
pub(super) fn resume(stage: &Stage) -> Case<'_> {
    let size = stage.options.size.unwrap_or(ByteSize(1024 * MIB));
    let contender = |name: &str, variant: Variant| Contender {
        name: name.to_owned(),
        run: Box::new(move || one_round(stage, variant, size.as_u64())),
    };
    Case {
        name: "resume",
        title: format!("Killed half-way through {} and resumed", size.display()),
        columns: vec![SECONDS, CPU, KILLED_AT, AGAIN],
        reference: None,
        most_rounds: 3,
        is_large: false,
        contenders: vec![
            contender("enjambre tcp", Variant::Tcp),
            contender("enjambre tcp, into SQLite", Variant::Database),
        ],
    }
}

fn one_round(stage: &Stage, variant: Variant, size: u64) -> Result<Sample> {
    let content = stage.file(size)?;
    let room = stage.room()?;
    let world = World::new_in(room.path(), Setup::default());
    let tracker = world.tracker("tracker");
    let mut source = world.running_peer_with("source", &[&tracker], &[variant.listen()]);
    source.publish(&content.path, &[]);
    let peer = world.peer_with("peer", &[&tracker], &[variant.listen()]);
    let target = room.path().join("target");
    fs::create_dir(&target)?;
    let path = target.join(content.name());
    let mut args = vec![OsStr::new("get"), content.name().as_ref(), "--json".as_ref()];
    if variant.is_to_file() {
        args.extend(["-o".as_ref(), path.as_os_str()]);
    }
    let warm = WarmMemory::new(2 * size);
    let mut get = peer.spawn(&args);
    let killed_at = get.wait_event(|event| event["done"].as_u64().filter(|done| *done >= size / 2));
    get.kill();
    let (taken, _) = race(&[source.pid()], vec![Work::until_exit(|| peer.spawn(&args))], DEADLINE, warm)?;
    let sent = source.sent();
    ensure!(sent >= size, "the source sent {sent} bytes only");
    if !variant.is_to_file() {
        peer.run([OsStr::new("export"), content.name().as_ref(), OsStr::new("-o"), path.as_os_str()]).ok();
    }
    content.compare(&path)?;
    Ok(Sample::from([
        ("seconds", taken.seconds),
        ("cpu", taken.cpu),
        ("killed_at", killed_at as f64 / MIB as f64),
        ("again_mib", (sent - size) as f64 / MIB as f64),
    ]))
}
