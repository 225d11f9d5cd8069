//! From format 1 of a catalogue to format 2, which gave files and peers a number each.
//!
//! Format 1 had the same spaces but `peers` and `cleared`, and these entries were others; `docs/STORAGE-LAYOUT.md` has the
//! whole:
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | `versions`, `files` | as now | as now without `no` |
//! | `providers` | file id, peer id | [`OldClaim`] |
//! | `offers` | peer id, file id | one byte 0 |
//! | `leases` | peer id | [`OldLease`] |
//! | `sessions` | session id | peer id |
//!
//! The keys of both formats differ in length, so they can be in one space at the same time. What cannot be read is
//! passed over as the catalogue itself does: names and files stay as they are, and what peers say again by
//! themselves goes.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::layout::{
    self, Claim, FILES, FileEntry, FileNumber, LEASES, LeaseRecord, MAX_NUMBER, META, OFFERS, PEERS,
    PROVIDERS, PeerNumber, RECORD, SESSIONS, VERSIONS, VersionRecord,
};
use crate::format::{Move, Step};
use crate::model::endpoint::Endpoint;
use crate::model::id::{FileId, PeerId};
use crate::model::name::Name;
use crate::model::record::FileKind;
use crate::protocol::message::SessionId;
use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Key, KeyRange, Space, Write};

#[derive(Deserialize)]
struct OldVersion {
    id: FileId,
    size: u64,
    kind: FileKind,
    at: u64,
    by: PeerId,
}

#[derive(Deserialize)]
struct OldFile {
    name: Name,
    version: u64,
    size: u64,
    kind: FileKind,
    at: u64,
    by: PeerId,
    #[serde(default)]
    gone: Option<u64>,
}

#[derive(Deserialize)]
struct OldClaim {
    size: u64,
    complete: bool,
    hello: u64,
}

#[derive(Deserialize)]
struct OldLease {
    session: SessionId,
    hello: u64,
    renewed: u64,
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    left: bool,
    #[serde(default)]
    settled: bool,
}

/// The entries that are brought forward one after the other, each by those before it.
const ORDER: [Space; 6] = [LEASES, FILES, VERSIONS, PROVIDERS, OFFERS, SESSIONS];

/// How far it is.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    /// The place in [`ORDER`].
    at: usize,
    /// The last key of that space that was looked at.
    after: Option<Bytes>,
    /// The first number that is free.
    next: u64,
}

impl Note {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
}

/// The step.
pub(super) struct FromOne {
    /// How many entries one batch brings forward at most.
    pub(super) page: usize,
}

#[async_trait]
impl Step for FromOne {
    async fn next(&self, storage: &dyn Storage, note: &[u8]) -> Result<Move, StorageError> {
        let mut note: Note = if note.is_empty() { Note::default() } else { layout::decode(META, note)? };
        let mut batch = Batch::new();
        while let Some(space) = ORDER.get(note.at) {
            let range = match note.after.take() {
                Some(after) => KeyRange::all().after(&Key::new(after)?),
                None => KeyRange::all(),
            };
            let page = storage.scan(*space, range, self.page).await?;
            let Some((last, _)) = page.last() else {
                note.at += 1;
                continue;
            };
            note.after = Some(last.as_bytes().to_vec().into());
            let old = page.into_iter().filter(|(key, value)| is_old(*space, key, value)).collect::<Vec<_>>();
            let entries = old.len() as u64;
            match *space {
                LEASES => leases(&old, &mut note, &mut batch),
                FILES => files(&old, &mut note, &mut batch),
                VERSIONS => versions(storage, &old, &mut note, &mut batch).await?,
                PROVIDERS => claims(storage, &old, &mut batch).await?,
                // What is left belongs to no claim.
                OFFERS => batch.writes.extend(old.into_iter().map(|(key, _)| Write::Delete(OFFERS, key))),
                _ => sessions(storage, &old, &mut batch).await?,
            }
            // A page of entries that are as they should be is not worth a commit.
            if !batch.is_empty() {
                return Ok(Move { batch, note: Some(layout::encode(&note)), entries });
            }
        }
        batch.put(META, layout::meta_key("numbers"), layout::number(note.next));
        Ok(Move { batch, note: None, entries: 0 })
    }
}

/// Whether an entry is of format 1, so far as that can be told by its length.
fn is_old(space: Space, key: &Key, value: &[u8]) -> bool {
    let length = key.as_bytes().len();
    match space {
        LEASES => length == 32,
        PROVIDERS | OFFERS => length == 64,
        SESSIONS => value.len() == 32,
        _ => true,
    }
}

/// The record; none where it cannot be read, which the log is told.
fn readable<T: DeserializeOwned>(space: Space, raw: &[u8], then: &'static str) -> Option<T> {
    layout::decode(space, raw)
        .inspect_err(|error| tracing::warn!(%error, "a damaged entry of the catalogue is {then}"))
        .ok()
}

type Entry = (Key, Bytes);

fn leases(page: &[Entry], note: &mut Note, batch: &mut Batch) {
    for (key, raw) in page {
        batch.delete(LEASES, key.clone());
        let Some(lease) = readable::<OldLease>(LEASES, raw, "taken away") else { continue };
        let Ok(id) = PeerId::try_from(key.as_bytes()) else { continue };
        let OldLease { session, hello, renewed, endpoints, left, settled } = lease;
        let hello = hello.min(MAX_NUMBER);
        let record = LeaseRecord { v: RECORD, id, session, hello, renewed, endpoints, left, settled };
        let number = PeerNumber(note.number());
        batch.put(LEASES, layout::peer_key(number), layout::encode(&record));
        batch.put(PEERS, layout::peer_id_key(&id), layout::peer_number(number));
    }
}

fn files(page: &[Entry], note: &mut Note, batch: &mut Batch) {
    for (key, raw) in page {
        let Some(file) = readable::<OldFile>(FILES, raw, "left as it is") else { continue };
        let OldFile { name, version, size, kind, at, by, gone } = file;
        let no = FileNumber(note.number());
        let entry = FileEntry { v: RECORD, name, version, size, kind, at, by, no, gone };
        batch.put(FILES, key.clone(), layout::encode(&entry));
    }
}

async fn versions(
    storage: &dyn Storage,
    page: &[Entry],
    note: &mut Note,
    batch: &mut Batch,
) -> Result<(), StorageError> {
    let read =
        |(key, raw): &Entry| Some((key.clone(), readable::<OldVersion>(VERSIONS, raw, "left as it is")?));
    let page: Vec<_> = page.iter().filter_map(read).collect();
    let numbers = files_of(storage, page.iter().map(|(_, version)| version.id)).await?;
    for (key, OldVersion { id, size, kind, at, by }) in page {
        // Nobody else has this number, as nobody has the file.
        let no = numbers.get(&id).copied().unwrap_or_else(|| FileNumber(note.number()));
        let record = VersionRecord { v: RECORD, id, size, kind, at, by, no };
        batch.put(VERSIONS, key, layout::encode(&record));
    }
    Ok(())
}

async fn claims(storage: &dyn Storage, page: &[Entry], batch: &mut Batch) -> Result<(), StorageError> {
    let mut found = Vec::with_capacity(page.len());
    for (key, raw) in page {
        batch.delete(PROVIDERS, key.clone());
        let (file, peer) = key.as_bytes().split_at(32);
        batch.delete(OFFERS, Key::new([peer, file].concat())?);
        let Some(claim) = readable::<OldClaim>(PROVIDERS, raw, "taken away") else { continue };
        let (Ok(file), Ok(peer)) = (FileId::try_from(file), PeerId::try_from(peer)) else { continue };
        found.push((file, peer, claim));
    }
    let files = files_of(storage, found.iter().map(|(file, ..)| *file)).await?;
    let peers = peers_of(storage, found.iter().map(|(_, peer, _)| *peer)).await?;
    for (file, peer, OldClaim { size, complete, hello }) in found {
        // Who has no lease says hello again before anybody hears of what it has.
        let (Some(file), Some(peer)) = (files.get(&file), peers.get(&peer)) else { continue };
        let claim = Claim { size, complete };
        batch.put(PROVIDERS, layout::provider_key(*file, *peer), claim.encode());
        batch.put(OFFERS, layout::offer_key(*peer, *file), claim.encode_offer(hello));
    }
    Ok(())
}

async fn sessions(storage: &dyn Storage, page: &[Entry], batch: &mut Batch) -> Result<(), StorageError> {
    let peer = |raw: &Bytes| PeerId::try_from(&raw[..]).ok();
    let peers = peers_of(storage, page.iter().filter_map(|(_, raw)| peer(raw))).await?;
    for (key, raw) in page {
        match peer(raw).and_then(|peer| peers.get(&peer)) {
            Some(number) => batch.put(SESSIONS, key.clone(), layout::peer_number(*number)),
            None => batch.delete(SESSIONS, key.clone()),
        };
    }
    Ok(())
}

/// The numbers of those files that have an entry already brought forward.
async fn files_of(
    storage: &dyn Storage,
    ids: impl Iterator<Item = FileId>,
) -> Result<HashMap<FileId, FileNumber>, StorageError> {
    let number = |raw: &[u8]| Some(layout::decode::<FileEntry>(FILES, raw).ok()?.no);
    numbers(storage, FILES, ids, layout::file_key, number).await
}

async fn peers_of(
    storage: &dyn Storage,
    ids: impl Iterator<Item = PeerId>,
) -> Result<HashMap<PeerId, PeerNumber>, StorageError> {
    let number = |raw: &[u8]| layout::read_peer(PEERS, raw).ok();
    numbers(storage, PEERS, ids, layout::peer_id_key, number).await
}

async fn numbers<Id: Copy + Ord + std::hash::Hash, Number>(
    storage: &dyn Storage,
    space: Space,
    ids: impl Iterator<Item = Id>,
    key: fn(&Id) -> Key,
    number: impl Fn(&[u8]) -> Option<Number>,
) -> Result<HashMap<Id, Number>, StorageError> {
    let mut ids: Vec<Id> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    let keys: Vec<_> = ids.iter().map(key).collect();
    let values = storage.get(space, &keys).await?;
    Ok(ids.into_iter().zip(values).filter_map(|(id, raw)| Some((id, number(&raw?)?))).collect())
}
