//! The workload of a simulation: publications, downloads, removals and lookups.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use enjambre_core::{CatalogueId, FileId, FileRecord, Publication};
use enjambre_swarm::download::get::{GetRequest, get};
use enjambre_swarm::download::request::Progress;
use enjambre_swarm::library::publish::PublishOptions;
use enjambre_swarm::tracker_client::error::TrackerError;
use parking_lot::Mutex;
use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::sync::watch;
use tokio::time::timeout;

use super::model::{Model, Original, PublishedFile};
use super::peer::Running;
use super::world::{TIMEOUT, World};

impl World {
    /// Publishes a random file in the background.
    pub(super) fn publish_random(&mut self, at: usize) {
        let Some(running) = self.peers[at].running().cloned() else { return };
        if self.peers[at].misbehaving {
            return;
        }
        let name = format!("name-{}", self.published);
        self.published += 1;
        // Sometimes a known file again, by another peer or with another name.
        let known = if self.random.random_bool(0.15) { self.random_file() } else { None };
        let (known_id, original) = match known {
            Some((id, known)) => (Some(id), Original { name, ..known.original }),
            None => (None, Original::draw(name, &mut self.random)),
        };
        if known_id.is_some_and(|id| !self.model.lock().publishing.insert((at, id))) {
            return;
        }
        let path = original.write(self.folder.path()).expect("cannot write the original");
        let peer = &mut self.peers[at];
        let (model, trace, name) = (Arc::clone(&self.model), self.trace.clone(), peer.name.clone());
        trace.note(&name, format_args!("publish {} {:?}", original.name, original.kind));
        peer.add_task(tokio::spawn(async move {
            let published = publish_one(&running, at, &path, &original, &model).await;
            trace.note(&name, format_args!("published {}: {published:?}", original.name));
            let mut model = model.lock();
            model.publishing.retain(|(peer, id)| *peer != at || Some(*id) != known_id);
            match published {
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

    /// Returns a random published file.
    pub(super) fn random_file(&mut self) -> Option<(FileId, PublishedFile)> {
        let model = self.model.lock();
        let known: Vec<_> = model.known.iter().collect();
        known.choose(&mut self.random).map(|(id, known)| (**id, (*known).clone()))
    }

    /// Downloads a random file in the background.
    pub(super) fn get_random(&mut self, at: usize) {
        let Some((id, known)) = self.random_file() else { return };
        let durable = self.random.random_bool(0.5);
        self.get(at, id, known, durable);
    }

    /// Downloads a file in the background, unless the peer is already downloading it.
    pub fn get(&mut self, at: usize, id: FileId, known: PublishedFile, durable: bool) {
        let peer = &mut self.peers[at];
        let Some(running) = peer.running().cloned() else { return };
        if !self.model.lock().getting.insert((at, id)) {
            return;
        }
        let (model, trace, name) = (Arc::clone(&self.model), self.trace.clone(), peer.name.clone());
        trace.note(&name, format_args!("get {} {id}", known.original.name));
        peer.add_task(tokio::spawn(async move {
            let downloaded = deliver(&running, id, &known, durable).await;
            trace.note(&name, format_args!("downloaded {} {downloaded:?}", known.original.name));
            let mut model = model.lock();
            model.getting.remove(&(at, id));
            match downloaded {
                Ok(Ok(())) => {
                    model.delivered += 1;
                    model.completed(at, id, durable);
                }
                Ok(Err(_)) => {}
                Err(failure) => model.fail(format!("{name}: {failure}")),
            }
        }));
    }

    /// Removes a random file.
    pub(super) async fn remove_random(&mut self, at: usize) {
        let Some(running) = self.peers[at].running().cloned() else { return };
        let Some((id, _)) = self.random_file() else { return };
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

    /// Looks up a random acknowledged name in the background.
    pub(super) fn find_random(&mut self, at: usize) {
        let Some(running) = self.peers[at].running().cloned() else { return };
        let Some((id, known)) = self.random_file() else { return };
        let acknowledged: Vec<_> = known.acknowledged.keys().cloned().collect();
        let Some(name) = acknowledged.choose(&mut self.random).cloned() else { return };
        let (model, single_database) = (Arc::clone(&self.model), self.databases.len() == 1);
        self.peers[at].add_task(tokio::spawn(async move {
            let Ok(found) = timeout(TIMEOUT, running.trackers.find(&name)).await else {
                return model.lock().fail(format!("lookup of {name} does not end"));
            };
            if let Err(failure) = check_lookup(id, &name, found, single_database) {
                model.lock().fail(failure);
            }
        }));
    }

    /// Syncs the library of a peer in the background.
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

/// Publishes a path like the command line does. An inner error is a permitted failure, an outer error a violated guarantee.
pub(super) async fn publish_one(
    running: &Running,
    at: usize,
    path: &Path,
    original: &Original,
    model: &Mutex<Model>,
) -> Result<Result<(FileId, CatalogueId), String>, String> {
    let options = PublishOptions { store: true, ..PublishOptions::default() };
    let published = timeout(TIMEOUT, running.library.publish(path, options, |_| ())).await;
    let published =
        match published.map_err(|_| format!("adding {} to the library does not end", original.name))? {
            Ok(published) => published,
            Err(error) => return Ok(Err(error.to_string())),
        };
    let id = published.id;
    let Some(entry) = running.library.entry(&id) else {
        return Err(format!("{} was published and is not in the library", original.name));
    };
    {
        let mut model = model.lock();
        let (original, acknowledged) = (original.clone(), BTreeMap::new());
        let known = PublishedFile { original, size: entry.size, publisher: at, acknowledged };
        model.known.entry(id).or_insert(known);
        model.completed(at, id, true);
    }
    let publication = Publication { name: published.name, id, size: entry.size, kind: entry.kind };
    let acknowledged = timeout(TIMEOUT, running.presence.publish(&publication)).await;
    let acknowledged = acknowledged.map_err(|_| format!("publication of {} does not end", original.name))?;
    Ok(acknowledged.map(|acknowledgement| (id, acknowledgement.catalogue)).map_err(|error| error.to_string()))
}

/// Downloads a file like the command line does, and compares it with the original. An inner error is a permitted failure, an
/// outer error a violated guarantee.
pub async fn deliver(
    running: &Arc<Running>,
    id: FileId,
    known: &PublishedFile,
    durable: bool,
) -> Result<Result<(), String>, String> {
    let name = known.original.name.parse().ok();
    // The metadata in the catalogue may be wrong.
    let (kind, size) = match running.trackers.find(&id.to_string()).await {
        Ok(file) => (file.kind, file.size),
        Err(_) => (known.original.kind, known.size),
    };
    let request = GetRequest { id, name, kind, size, output: None, force: false, durable };
    let progress = watch::Sender::new(Progress::default());
    if let Err(error) = get(&running.downloader, &request, running.trackers.clone(), &progress).await {
        return Ok(Err(error.to_string()));
    }
    running.compare(id, &known.original).await?;
    Ok(Ok(()))
}

/// Checks the result of a lookup of an acknowledged name. With a single_database database the name must be found.
pub fn check_lookup(
    id: FileId,
    name: &str,
    found: Result<FileRecord, TrackerError>,
    single_database: bool,
) -> Result<(), String> {
    match found {
        Ok(file) if file.id == id => Ok(()),
        Ok(file) => Err(format!("{name} has id {}, expected {id}", file.id)),
        Err(TrackerError::NotFound { .. }) if single_database => {
            Err(format!("{name} was acknowledged and is not found"))
        }
        Err(_) => Ok(()),
    }
}
