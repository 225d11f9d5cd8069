//! What people do: publish, get, remove and look for things.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use enjambre_core::download::get::{Get, get};
use enjambre_core::download::progress::Progress;
use enjambre_core::model::id::FileId;
use enjambre_core::model::record::{FileRecord, Publication};
use enjambre_core::protocol::message::CatalogueId;
use enjambre_core::publish::{PublishOptions, publish};
use enjambre_core::tracker::error::TrackerError;
use parking_lot::Mutex;
use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::sync::watch;
use tokio::time::timeout;

use super::model::{Known, Model, Original};
use super::peer::Running;
use super::world::{PATIENCE, World};

impl World {
    pub(super) fn publish_something(&mut self, at: usize) {
        let Some(running) = self.peers[at].running().cloned() else { return };
        if self.peers[at].liar {
            return;
        }
        let name = format!("name-{}", self.published);
        self.published += 1;
        // What is published already may be so again, by somebody else or under a further name.
        let again = if self.random.random_bool(0.15) { self.some_file() } else { None };
        let (again, original) = match again {
            Some((id, known)) => (Some(id), Original { name, ..known.original }),
            None => (None, Original::draw(name, &mut self.random)),
        };
        if again.is_some_and(|id| !self.model.lock().publishing.insert((at, id))) {
            return;
        }
        let path = original.write(self.folder.path()).expect("a file can be written");
        let peer = &mut self.peers[at];
        let (model, trace, name) = (Arc::clone(&self.model), self.trace.clone(), peer.name.clone());
        trace.note(&name, format_args!("publish {} {:?}", original.name, original.kind));
        peer.add_task(tokio::spawn(async move {
            let told = publish_one(&running, at, &path, &original, &model).await;
            trace.note(&name, format_args!("published {}: {told:?}", original.name));
            let mut model = model.lock();
            model.publishing.retain(|(peer, id)| *peer != at || Some(*id) != again);
            match told {
                Ok(Ok((id, catalogue))) => {
                    if let Some(known) = model.known.get_mut(&id) {
                        known.acknowledged.insert(original.name, catalogue);
                    }
                }
                Ok(Err(_)) => {}
                Err(failure) => model.fail(format!("{name}: {failure}")),
            }
        }));
    }

    /// One of the files that somebody published.
    fn some_file(&mut self) -> Option<(FileId, Known)> {
        let model = self.model.lock();
        let known: Vec<_> = model.known.iter().collect();
        known.choose(&mut self.random).map(|(id, known)| (**id, (*known).clone()))
    }

    pub(super) fn get_something(&mut self, at: usize) {
        let Some((id, known)) = self.some_file() else { return };
        let durable = self.random.random_bool(0.5);
        self.get(at, id, known, durable);
    }

    /// Has a peer get something, unless it does already.
    pub fn get(&mut self, at: usize, id: FileId, known: Known, durable: bool) {
        let peer = &mut self.peers[at];
        let Some(running) = peer.running().cloned() else { return };
        if !self.model.lock().getting.insert((at, id)) {
            return;
        }
        let (model, trace, name) = (Arc::clone(&self.model), self.trace.clone(), peer.name.clone());
        trace.note(&name, format_args!("get {} {id}", known.original.name));
        peer.add_task(tokio::spawn(async move {
            let got = deliver(&running, id, &known, durable).await;
            trace.note(&name, format_args!("got {} {got:?}", known.original.name));
            let mut model = model.lock();
            model.getting.remove(&(at, id));
            match got {
                Ok(Ok(())) => {
                    model.delivered += 1;
                    model.completed(at, id, durable);
                }
                Ok(Err(_)) => {}
                Err(failure) => model.fail(format!("{name}: {failure}")),
            }
        }));
    }

    pub(super) async fn remove_something(&mut self, at: usize) {
        let Some(running) = self.peers[at].running().cloned() else { return };
        let Some((id, _)) = self.some_file() else { return };
        let busy = {
            let model = self.model.lock();
            model.getting.contains(&(at, id)) || model.publishing.contains(&(at, id))
        };
        if busy {
            return;
        }
        self.model.lock().removed(at, id);
        let removed = running.library.remove(&id).await;
        self.trace.note(&self.peers[at].name, format_args!("remove {id}: {removed:?}"));
    }

    pub(super) fn find_something(&mut self, at: usize) {
        let Some(running) = self.peers[at].running().cloned() else { return };
        let Some((id, known)) = self.some_file() else { return };
        let acknowledged: Vec<_> = known.acknowledged.keys().cloned().collect();
        let Some(name) = acknowledged.choose(&mut self.random).cloned() else { return };
        let (model, one) = (Arc::clone(&self.model), self.databases.len() == 1);
        self.peers[at].add_task(tokio::spawn(async move {
            let Ok(found) = timeout(PATIENCE, running.trackers.find(&name)).await else {
                return model.lock().fail(format!("the question for {name} does not end"));
            };
            if let Err(failure) = is_found(id, &name, found, one) {
                model.lock().fail(failure);
            }
        }));
    }

    pub(super) fn checkpoint(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let Some(running) = peer.running().cloned() else { return };
        let (model, trace, name) = (Arc::clone(&self.model), self.trace.clone(), peer.name.clone());
        peer.add_task(tokio::spawn(async move {
            let (before, removals) = {
                let model = model.lock();
                (model.complete_at(at), model.removals)
            };
            let pieces = running.pieces();
            let done = running.library.checkpoint_all().await;
            trace.note(&name, format_args!("checkpoint {}", done.is_ok()));
            let mut model = model.lock();
            if done.is_ok() && model.removals == removals {
                model.synced(at, &pieces);
                for id in before {
                    model.completed(at, id, true);
                }
            }
        }));
    }
}

/// Publishes something as the command line does. The inner error is a reason why nobody was told that it is published, the
/// outer one is something that must not happen.
async fn publish_one(
    running: &Running,
    at: usize,
    path: &Path,
    original: &Original,
    model: &Mutex<Model>,
) -> Result<Result<(FileId, CatalogueId), String>, String> {
    let options = PublishOptions { name: None, store: true };
    let published = timeout(PATIENCE, publish(&running.library, path, options, |_| ())).await;
    let published =
        match published.map_err(|_| format!("the publishing of {} does not end", original.name))? {
            Ok(published) => published,
            Err(error) => return Ok(Err(error.to_string())),
        };
    let id = published.id;
    let Some(entry) = running.library.entry(&id) else {
        return Err(format!("{} was published and is not there", original.name));
    };
    {
        let mut model = model.lock();
        let (original, acknowledged) = (original.clone(), BTreeMap::new());
        let known = Known { original, size: entry.size, publisher: at, acknowledged };
        model.known.entry(id).or_insert(known);
        model.completed(at, id, true);
    }
    let publication = Publication { name: published.name, id, size: entry.size, kind: entry.kind };
    let told = timeout(PATIENCE, running.presence.publish(&publication)).await;
    let told = told.map_err(|_| format!("the publication of {} does not end", original.name))?;
    Ok(told.map(|told| (id, told.catalogue)).map_err(|error| error.to_string()))
}

/// Gets something as the command line does, and compares it. The inner error is a reason not to have got it, the outer
/// one is something that must not happen.
pub async fn deliver(
    running: &Arc<Running>,
    id: FileId,
    known: &Known,
    durable: bool,
) -> Result<Result<(), String>, String> {
    let name = known.original.name.parse().ok();
    let kind = known.original.kind;
    let what = Get { id, name, kind, size: known.size, output: None, force: false, durable };
    let progress = watch::Sender::new(Progress::default());
    if let Err(error) = get(&running.downloader, &what, running.providers.clone(), &progress).await {
        return Ok(Err(error.to_string()));
    }
    running.compare(id, &known.original).await?;
    Ok(Ok(()))
}

/// Whether the answer to a question for an acknowledged name is a possible one.
pub fn is_found(
    id: FileId,
    name: &str,
    found: Result<FileRecord, TrackerError>,
    one: bool,
) -> Result<(), String> {
    match found {
        Ok(file) if file.id == id => Ok(()),
        Ok(file) => Err(format!("{name} is {} instead of {id}", file.id)),
        Err(TrackerError::NotFound { .. }) if one => Err(format!("{name} was acknowledged and is not found")),
        Err(_) => Ok(()),
    }
}
