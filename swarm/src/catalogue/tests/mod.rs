//! Tests of the catalogue on the in-memory storage.

mod claims;
mod damage;
mod list;
mod members;
mod names;
mod open;
mod peers;
mod pins;
mod revocations;
mod unknown_outcome;

use std::sync::Arc;
use std::time::Duration;

use super::layout::{Claim, LeaseRecord};
use super::leases::LeaseRules;
use super::peers::Session;
use super::{Catalogue, CatalogueRules};
use enjambre_core::{
    FileId, FileKind, FileRecord, Memory, PeerId, Publication, SessionId, Storage, StorageError, UnixMillis,
};

pub(crate) const RULES: CatalogueRules = CatalogueRules {
    leases: LeaseRules { lease: ms(30_000), retention: ms(1_000_000), settle: ms(120_000) },
    cache_ttl: ms(5_000),
    max_peers: 1000,
    max_versions: 1_000_000,
    file_number_cache: 1 << 17,
};
pub(crate) const START: UnixMillis = UnixMillis(1_000_000_000);

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn storage() -> Arc<dyn Storage> {
    Arc::new(Memory::new())
}

pub(crate) async fn open(storage: &Arc<dyn Storage>, now: UnixMillis) -> Catalogue {
    Catalogue::open(Arc::clone(storage), RULES, now).await.unwrap()
}

pub(crate) fn file(n: u64) -> FileId {
    FileId::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

pub(crate) fn publication(name: &str, id: FileId) -> Publication {
    Publication { name: name.parse().unwrap(), id, size: 10, kind: FileKind::File }
}

pub(crate) async fn session(catalogue: &Catalogue, peer: u8, now: UnixMillis) -> Session {
    let endpoint = format!("zmq://10.0.0.{peer}:7710").parse().unwrap();
    let id = catalogue.open_session(PeerId::from_bytes([peer; 32]), vec![endpoint], now).await.unwrap();
    catalogue.authorize(id, now).await.unwrap()
}

/// The current session of the peer of an earlier session.
pub(crate) fn current_session(catalogue: &Catalogue, of: &Session) -> SessionId {
    catalogue.cache.lock().session_of(of.number)
}

/// The number of providers of a file.
async fn count(catalogue: &Catalogue, n: u64, now: UnixMillis) -> u32 {
    catalogue.find(&file(n).to_string(), now).await.unwrap().providers
}

/// The ids of the providers of a file.
async fn providers(catalogue: &Catalogue, n: u64, now: UnixMillis) -> Vec<PeerId> {
    let mut peers: Vec<_> =
        alive_claims(catalogue, n, now).await.unwrap().iter().map(|(_, lease)| lease.id).collect();
    peers.sort_unstable();
    peers
}

/// The claims of living peers to a file, and their leases.
async fn alive_claims(
    catalogue: &Catalogue,
    n: u64,
    now: UnixMillis,
) -> Result<Vec<(Claim, Arc<LeaseRecord>)>, StorageError> {
    let Some((_, claims)) = catalogue.file_claims(&file(n), now).await? else {
        return Ok(Vec::new());
    };
    let peers: Vec<_> = claims.iter().map(|(peer, _)| *peer).collect();
    let alive = catalogue.alive_peers(&peers, now).await?;
    Ok(claims
        .into_iter()
        .zip(alive.leases)
        .filter_map(|((_, claim), lease)| Some((claim, lease?)))
        .filter(|(_, lease)| !lease.endpoints.is_empty())
        .collect())
}

/// All files of a list, read page by page.
async fn all(catalogue: &Catalogue, pattern: &str, limit: usize) -> Vec<FileRecord> {
    let (mut files, mut cursor) = (Vec::new(), None);
    loop {
        let page = catalogue.list(pattern, cursor.as_deref(), limit, None, START, |_| None).await.unwrap();
        assert!(page.files.len() <= limit);
        let mut encoded = Vec::new();
        ciborium::into_writer(&page.files, &mut encoded).unwrap();
        assert!(encoded.len() <= 60 * 1024, "a page fits into a header");
        files.extend(page.files);
        cursor = page.cursor;
        if cursor.is_none() {
            return files;
        }
    }
}
