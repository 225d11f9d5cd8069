//! Content on its way: one source to one place, to many places, small files, and how it gets in.

use std::fs;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytesize::ByteSize;
use enjambre_tests::content::MIB;

use super::{Case, Contender};
use crate::machine::WarmMemory;
use crate::process::{DEADLINE, Taken, race};
use crate::report::{COPIES, CPU, Column, PEER_MIB, SECONDS, SOURCE_MIB, Sample};
use crate::stage::{Content, Stage};
use crate::tools::{Enjambre, Run, Task, Tool, Variant};

/// One source, one place: the time until everything is verified and written.
pub(super) fn single<'a>(stage: &'a Stage, tools: &[Rc<dyn Tool>]) -> Case<'a> {
    let size = size(stage, 1024 * MIB);
    transfer(
        stage,
        "single",
        format!("One source, one downloader, {}", size.display()),
        takers(tools, Task::File),
        Plan::default(),
        move || stage.file(size.as_u64()),
    )
}

/// The same until a power cut would not matter any more.
pub(super) fn durable(stage: &Stage) -> Case<'_> {
    let size = size(stage, 1024 * MIB);
    let tools: [Rc<dyn Tool>; 2] =
        [Rc::new(Enjambre(Variant::Synced)), Rc::new(Enjambre(Variant::DatabaseSynced))];
    let title = format!("The same until it survives a power cut, {}", size.display());
    let plan = Plan::default();
    let case = transfer(stage, "durable", title, tools.into(), plan, move || stage.file(size.as_u64()));
    Case { reference: None, most_rounds: 3, ..case }
}

/// One source, several places that help each other.
pub(super) fn swarm<'a>(
    stage: &'a Stage,
    tools: &[Rc<dyn Tool>],
    name: &'static str,
    downloads: usize,
    upload: Option<u64>,
) -> Case<'a> {
    let size = size(stage, 512 * MIB);
    let held =
        upload.map(|bytes| format!(", the source limited to {} MB/s", bytes / 1_000_000)).unwrap_or_default();
    let title = format!("One source, {downloads} downloaders, {}{held}", size.display());
    let task = if upload.is_some() { Task::Limited } else { Task::Swarm };
    let plan = Plan { downloads, upload, ..Plan::default() };
    let case = transfer(stage, name, title, takers(tools, task), plan, move || stage.file(size.as_u64()));
    let columns = vec![SECONDS, COPIES, CPU, SOURCE_MIB, PEER_MIB];
    // The source's limit decides over the time, and with many downloaders a round takes long.
    let most_rounds = if upload.is_some() || downloads > 4 { 1 } else { 3 };
    Case { columns, reference: Some("enjambre tcp"), most_rounds, ..case }
}

/// A directory of small files.
pub(super) fn small_files<'a>(stage: &'a Stage, tools: &[Rc<dyn Tool>]) -> Case<'a> {
    let plan = Plan::default();
    let case = transfer(
        stage,
        "small-files",
        "A directory of 1,000 files of 10 KiB, one source, one downloader".to_owned(),
        takers(tools, Task::Folder),
        plan,
        || stage.files(1000, 10 << 10),
    );
    Case { reference: Some("rsync"), ..case }
}

/// A complete file over HTTP, to a client that drops it.
pub(super) fn http<'a>(stage: &'a Stage, tools: &[Rc<dyn Tool>]) -> Case<'a> {
    let size = size(stage, 1024 * MIB);
    let title = format!("A complete file over HTTP, {}", size.display());
    let case = transfer(stage, "http", title, takers(tools, Task::Serve), Plan::default(), move || {
        stage.file(size.as_u64())
    });
    Case { columns: vec![SECONDS, CPU, SOURCE_MIB], reference: Some("nginx"), ..case }
}

/// Taking a file in, so that it can be offered.
pub(super) fn publish<'a>(stage: &'a Stage, tools: &[Rc<dyn Tool>]) -> Case<'a> {
    let size = size(stage, 1024 * MIB);
    let contenders = takers(tools, Task::Publish).into_iter().map(|tool| {
        let name = if tool.name() == "baseline" { "baseline: hash with all cores" } else { tool.name() };
        let run = move || {
            let content = stage.file(size.as_u64())?;
            let room = stage.room()?;
            stage.swarm_tracker.clear();
            let run = Run {
                folder: room.path(),
                content: &content,
                downloads: 0,
                upload: None,
                swarm_tracker: &stage.swarm_tracker,
            };
            let warm = WarmMemory::new(0);
            let (_others, work) = tool.publish(&run)?;
            let (taken, _) = race(&[], vec![work], DEADLINE, warm)?;
            Ok(sample(&taken))
        };
        Contender { name: name.to_owned(), run: Box::new(run) }
    });
    Case {
        name: "publish",
        title: format!("Publish {}: until it can be offered", size.display()),
        columns: vec![SECONDS, CPU, PEER_MIB],
        reference: Some("baseline: hash with all cores"),
        most_rounds: usize::MAX,
        is_large: false,
        contenders: contenders.collect(),
    }
}

/// A file without content of its own that is larger than the memory of most machines.
pub(super) fn large(stage: &Stage) -> Case<'_> {
    let size = ByteSize::gib(16);
    let tools: [Rc<dyn Tool>; 2] = [Rc::new(Enjambre(Variant::Tcp)), Rc::new(Enjambre(Variant::Zmq))];
    let title = format!("One source, one downloader, a sparse file of {}", size.display());
    let plan = Plan { deadline: 4 * DEADLINE, ..Plan::default() };
    let case = transfer(stage, "large", title, tools.into(), plan, move || stage.sparse_file(size.as_u64()));
    Case { reference: None, most_rounds: 1, is_large: true, ..case }
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    downloads: usize,
    upload: Option<u64>,
    deadline: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { downloads: 1, upload: None, deadline: DEADLINE }
    }
}

fn size(stage: &Stage, usual: u64) -> ByteSize {
    stage.options.size.unwrap_or(ByteSize(usual))
}

fn takers(tools: &[Rc<dyn Tool>], task: Task) -> Vec<Rc<dyn Tool>> {
    tools.iter().filter(|tool| tool.can(task)).cloned().collect()
}

fn transfer<'a>(
    stage: &'a Stage,
    name: &'static str,
    title: String,
    tools: Vec<Rc<dyn Tool>>,
    plan: Plan,
    content: impl Fn() -> Result<Rc<Content>> + Clone + 'a,
) -> Case<'a> {
    let columns: Vec<Column> = vec![SECONDS, CPU, SOURCE_MIB, PEER_MIB];
    let contenders = tools.into_iter().map(|tool| {
        let content = content.clone();
        let name = tool.name().to_owned();
        Contender { name, run: Box::new(move || one_round(stage, &*tool, plan, &*content()?)) }
    });
    Case {
        name,
        title,
        columns,
        reference: Some("baseline"),
        most_rounds: usize::MAX,
        is_large: false,
        contenders: contenders.collect(),
    }
}

fn one_round(stage: &Stage, tool: &dyn Tool, plan: Plan, content: &Content) -> Result<Sample> {
    let room = stage.room()?;
    let folder = room.path().join("tool");
    fs::create_dir(&folder)?;
    stage.swarm_tracker.clear();
    let Plan { downloads, upload, .. } = plan;
    let run = Run { folder: &folder, content, downloads, upload, swarm_tracker: &stage.swarm_tracker };
    let mut source = tool.offer(&run)?;
    let sent_before = source.sent()?;
    let mut targets = Vec::new();
    for number in 0..downloads {
        let target = room.path().join(format!("target-{number}"));
        fs::create_dir(&target)?;
        targets.push(target);
    }
    let pids = source.pids();
    let warm = WarmMemory::new(content.size * downloads as u64);
    let mut work = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        work.push(source.fetch(number, target)?);
    }
    let (taken, staying) = race(&pids, work, plan.deadline, warm)?;
    let mut sample = sample(&taken);
    if let (Some(before), Some(after)) = (sent_before, source.sent()?) {
        sample.insert("copies", (after - before) as f64 / content.size as f64);
    }
    for (number, target) in targets.iter().enumerate() {
        let path = source.arrived(number, target)?;
        ensure!(path.starts_with(target), "{} is not where it was asked for", path.display());
        content.compare(&path)?;
    }
    drop(staying);
    if content.is_folder() {
        drop(source);
        stage.keep(room);
    }
    Ok(sample)
}

fn sample(taken: &Taken) -> Sample {
    Sample::from([
        ("seconds", taken.seconds),
        ("cpu", taken.cpu),
        ("source_mib", taken.source_kib as f64 / 1024.0),
        ("peer_mib", taken.worker_kib as f64 / 1024.0),
    ])
}
