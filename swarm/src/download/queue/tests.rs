//! Random operations on a queue with power cuts and failed commits, compared with a simple model; limits.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::download::fixtures::StaticProviders;
use crate::download::settings::DownloadSettings;
use crate::library::content::ContentStore;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::storage::memory::Disk;
use enjambre_core::{Dialer, UnixMillis};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

fn id(number: u8) -> FileId {
    FileId::from_bytes([number; 32])
}

fn new(number: u8) -> NewDownload {
    let name = format!("file {number}").parse().unwrap();
    NewDownload { id: id(number), name, kind: FileKind::File, size: 10 }
}

async fn open(disk: &Disk) -> (Arc<FaultyStorage>, DownloadQueue) {
    let index = Arc::new(FaultyStorage::new(Arc::new(disk.open()), 1));
    let store = ContentStore::Database(Arc::new(Disk::new().open()));
    let library = Library::open(Arc::clone(&index) as _, store).await.unwrap();
    let (dialer, limit) = (Arc::new(Dialer::new(Vec::new())), Arc::new(BandwidthLimit::new(None)));
    let downloader = Downloader::new(library, dialer, limit, None, DownloadSettings::default());
    let queue = DownloadQueue::open(Arc::new(downloader), Arc::<StaticProviders>::default()).await.unwrap();
    (index, queue)
}

/// A random change of one entry.
#[derive(Debug, Clone, Copy)]
enum Change {
    Add,
    Pause,
    Resume,
    Cancel,
    Move(usize),
    Finish(bool),
}

impl Change {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..12) {
            0..4 => Self::Add,
            4 => Self::Pause,
            5 => Self::Resume,
            6 => Self::Cancel,
            7..10 => Self::Move(random.random_range(0..8)),
            _ => Self::Finish(random.random()),
        }
    }

    async fn apply(self, queue: &DownloadQueue, number: u8) -> Result<()> {
        let id = id(number);
        match self {
            Self::Add => queue.add(new(number)).await.map(drop),
            Self::Pause => queue.pause(id).await,
            Self::Resume => queue.resume(id).await,
            Self::Cancel => queue.cancel(id, true).await,
            Self::Move(position) => queue.move_to(id, position).await,
            Self::Finish(complete) => {
                let failed = || DownloadState::Failed("no".to_owned());
                let state = if complete { DownloadState::Complete } else { failed() };
                let finish = move |entries: &mut Entries| {
                    if entries.is_queued(&id) {
                        entries.finish(&id, state);
                    }
                    Ok(())
                };
                queue.0.change(finish).await
            }
        }
    }
}

/// The pending entries and the finished ones.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    pending: Vec<(u8, Stage)>,
    finished: Vec<(u8, Stage)>,
}

impl Model {
    fn of(queue: &DownloadQueue) -> Self {
        let mut model = Self::default();
        for status in queue.list() {
            let entry = (status.id.as_bytes()[0], status.stage);
            match status.position {
                Some(position) => {
                    assert_eq!(position, model.pending.len());
                    model.pending.push(entry);
                }
                None => model.finished.push(entry),
            }
        }
        model
    }

    /// Whether the change succeeds.
    fn apply(&mut self, change: Change, number: u8) -> bool {
        let pending = self.pending.iter().position(|(known, _)| *known == number);
        let finished = self.finished.iter().position(|(known, _)| *known == number);
        match (change, pending, finished) {
            (Change::Add, None, _) | (Change::Resume, None, Some(_)) => {
                if let Some(at) = finished {
                    if matches!(change, Change::Resume) && self.finished[at].1 == Stage::Complete {
                        return false;
                    }
                    self.finished.remove(at);
                }
                self.pending.push((number, Stage::Queued));
            }
            (Change::Pause, Some(at), _) => self.pending[at].1 = Stage::Paused,
            (Change::Resume, Some(at), _) => self.pending[at].1 = Stage::Queued,
            (Change::Move(to), Some(at), _) => {
                let entry = self.pending.remove(at);
                self.pending.insert(to.min(self.pending.len()), entry);
            }
            (Change::Finish(complete), Some(at), _) if self.pending[at].1 == Stage::Queued => {
                self.pending.remove(at);
                self.finished.push((number, if complete { Stage::Complete } else { Stage::Failed }));
            }
            (Change::Cancel, None, None) => return false,
            (Change::Cancel, ..) => {
                self.pending.retain(|(known, _)| *known != number);
                self.finished.retain(|(known, _)| *known != number);
            }
            (Change::Pause | Change::Resume | Change::Move(_), None, _) => return false,
            (Change::Add | Change::Finish(_), ..) => {}
        }
        true
    }
}

async fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = Disk::new();
    let (mut index, mut queue) = open(&disk).await;
    let mut model = Model::default();
    // The possible stored states after commits with unknown outcome, until the next successful one.
    let mut unknown = Vec::new();
    for step in 0..120 {
        let (change, number) = (Change::random(&mut random), random.random_range(1..8));
        let before = model.clone();
        let succeeds = model.apply(change, number);
        if random.random_range(0..6) == 0 && model != before {
            let fault = Fault::Indeterminate { applied: random.random() };
            index.add(Operation::Commit, When::Nth(1), fault);
            let failed = change.apply(&queue, number).await;
            assert!(matches!(failed, Err(QueueError::Storage(_))), "seed {seed}, step {step}: {failed:?}");
            index.clear();
            unknown.push(std::mem::replace(&mut model, before));
        } else {
            let result = change.apply(&queue, number).await;
            assert_eq!(result.is_ok(), succeeds, "seed {seed}, step {step}: {change:?} {result:?}");
            if model != before {
                unknown.clear();
            }
        }
        assert_eq!(Model::of(&queue), model, "seed {seed}, step {step}: {change:?} {number}");
        if random.random_range(0..10) == 0 {
            disk.power_cut();
            (index, queue) = open(&disk).await;
            let loaded = Model::of(&queue);
            let is_possible = loaded == model || unknown.contains(&loaded);
            assert!(is_possible, "seed {seed}, step {step}: {loaded:?} after {model:?} or {unknown:?}");
            (model, unknown) = (loaded, Vec::new());
        }
    }
}

#[tokio::test]
async fn queue_follows_model_across_power_cuts() {
    for seed in 0..40 {
        run(seed).await;
    }
}

fn record(number: u32, state: DownloadState) -> (FileId, DownloadRecord) {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    let (name, kind, added_ms) = ("a".parse().unwrap(), FileKind::File, UnixMillis(0));
    let record = DownloadRecord { order: number.into(), name, kind, size: 1, done: 0, added_ms, state };
    (FileId::from_bytes(bytes), record)
}

#[test]
fn oldest_finished_entry_is_removed() {
    let all = (0..=MAX_FINISHED as u32).map(|number| record(number, DownloadState::Queued));
    let mut entries = Entries::new(all.collect());
    let ids: Vec<FileId> = entries.iter().map(|(id, _)| *id).collect();
    for id in ids.iter().rev() {
        entries.finish(id, DownloadState::Complete);
    }
    assert_eq!(entries.iter().count(), MAX_FINISHED);
    assert!(entries.get(&ids[MAX_FINISHED]).is_none() && entries.get(&ids[0]).is_some());
}

#[test]
fn full_queue_refuses_another_entry() {
    let all = (0..MAX_PENDING as u32).map(|number| record(number, DownloadState::Paused));
    let mut entries = Entries::new(all.collect());
    let (id, another) = record(u32::MAX, DownloadState::Queued);
    assert!(matches!(entries.add(id, another.clone()), Err(QueueError::Full)));
    let first = entries.iter().next().unwrap().0;
    entries.remove(&first);
    entries.add(id, another).unwrap();
}
