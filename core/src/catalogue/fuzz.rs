//! Fuzz targets: what a damaged database gives back, patterns, and what is remembered of claims.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::describe::describe;
use super::formats;
use super::layout::{
    self, Claim, FILES, FileEntry, FileNumber, FormatRecord, INVITATIONS, InvitationRecord, LEASES,
    LeaseRecord, MEMBERS, META, MemberRecord, OFFERS, PINS, PROVIDERS, PeerNumber, PinRecord, RECORD,
    RESERVATIONS, ReservationRecord, ReservedRecord, SESSIONS, VERSIONS, VersionRecord,
};
use super::pattern::Pattern;
use super::remembered::{Remembered, RememberedFile};
use crate::model::id::{FileId, PeerId};
use crate::model::record::FileKind;
use crate::storage::Storage;
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Durability, Key, Space};

/// The sizes of claims, of which few are others than that of the file.
const SIZE: u64 = 7;

/// What was read is read again from what it is written as.
fn record<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(space: Space, data: &[u8]) {
    if let Ok(record) = layout::decode::<T>(space, data) {
        assert_eq!(
            layout::decode::<T>(space, &layout::encode(&record)).expect("it was just written"),
            record
        );
    }
}

/// Keys and values of every space: a byte for the space, one for the length of the key, then key and value.
pub(crate) fn records(data: &[u8]) {
    let [space, length, rest @ ..] = data else { return };
    let space = layout::SPACES[usize::from(*space) % layout::SPACES.len()];
    let (key, value) = rest.split_at(rest.len().min((*length).into()));
    let _ = describe(space, key, value);
    if let Ok((name, version)) = layout::read_version_key(key) {
        assert_eq!(layout::version_key(&name, version).as_bytes(), key);
    }
    if let Ok(found) = layout::version_key_of_file_name(key) {
        assert_eq!(found.as_bytes(), &key[32..]);
    }
    if let Ok(file) = layout::read_file_key(FILES, key) {
        assert_eq!(layout::file_key(&file).as_bytes(), key);
    }
    if let (Ok(peer), Ok(file)) = (layout::read_provider_key(key), layout::read_offer_key(key)) {
        assert_eq!(peer.0, file.0);
        assert_eq!(&layout::provider_key(FileNumber(0), peer).as_bytes()[6..], &key[6..]);
    }
    if let Ok(peer) = layout::read_peer(LEASES, key) {
        assert_eq!(layout::peer_key(peer).as_bytes(), key);
    }
    if let Ok(number) = layout::read_number(META, value) {
        assert_eq!(layout::number(number), value);
    }
    if let Ok(claim) = Claim::decode(value) {
        assert_eq!(Claim::decode(&claim.encode()).expect("it was just written"), claim);
    }
    if let Ok((claim, hello)) = Claim::decode_offer(value) {
        let written = claim.encode_offer(hello);
        assert!(written.len() <= value.len());
        assert_eq!(Claim::decode_offer(&written).expect("it was just written"), (claim, hello));
    }
    match space {
        META => {
            record::<FormatRecord>(META, value);
            record::<ReservedRecord>(META, value);
        }
        VERSIONS => record::<VersionRecord>(VERSIONS, value),
        FILES => record::<FileEntry>(FILES, value),
        LEASES => record::<LeaseRecord>(LEASES, value),
        PINS => record::<PinRecord>(PINS, value),
        INVITATIONS => record::<InvitationRecord>(INVITATIONS, value),
        MEMBERS => record::<MemberRecord>(MEMBERS, value),
        RESERVATIONS => record::<ReservationRecord>(RESERVATIONS, value),
        _ => {}
    }
}

/// The record of the format.
pub(crate) fn mark(data: &[u8]) {
    let formats = formats::formats();
    let newest = formats.is_newest(data);
    let Ok(mark) = (formats.read)(data) else {
        assert!(newest.is_err());
        return;
    };
    assert!(!matches!(newest, Ok(true)) || mark.format == layout::FORMAT && mark.note.is_none());
    assert_eq!((formats.read)(&(formats.write)(&mark)).expect("it was just written"), mark);
}

/// A database of format 1 with damaged entries is brought forward, or refused: each entry is a byte for the space, one
/// for the length of the key, one for that of the value, then key and value.
pub(crate) fn old(data: &[u8]) {
    const OLD: [Space; 6] = [LEASES, FILES, VERSIONS, PROVIDERS, OFFERS, SESSIONS];
    let (memory, mut batch) = (Memory::new(), Batch::new());
    let formats = formats::formats();
    let mark = FormatRecord { v: 1, what: formats::CATALOGUE.to_owned(), note: None };
    batch.put(META, layout::meta_key("format"), layout::encode(&mark));
    let mut rest = data;
    while let [space, key, value, behind @ ..] = rest {
        let (key, behind) = behind.split_at(behind.len().min((*key).into()));
        let (value, behind) = behind.split_at(behind.len().min((*value).into()));
        rest = behind;
        if let Ok(key) = Key::new(key.to_vec()) {
            batch.put(OLD[usize::from(*space) % OLD.len()], key, value.to_vec());
        }
    }
    let outcome = async {
        memory.commit(batch, Durability::Buffered).await?;
        formats.bring_forward(&memory).await?;
        memory.get(META, &[layout::meta_key("format")]).await
    };
    // Nothing that is damaged ends it.
    let stored = outcome.now_or_never().expect("memory never waits").expect("damage is passed over");
    assert!(formats.is_newest(stored[0].as_deref().expect("the mark")).expect("it was just written"));
}

/// A glob over a text, each on a line.
pub(crate) fn pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (glob, name) = text.split_once('\n').unwrap_or((text, ""));
    // The model takes the product of the lengths, as the real one does at most.
    if glob.len() > 300 || name.len() > 300 {
        return;
    }
    let pattern = Pattern::new(glob);
    let matches = pattern.matches(name);
    assert_eq!(
        matches,
        if glob.contains(['*', '?']) { matches_by_table(glob, name) } else { name.contains(glob) }
    );
    assert!(!matches || name.starts_with(pattern.prefix()));
}

/// Whether each beginning of the glob matches each beginning of the text, from the shorter ones.
fn matches_by_table(glob: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut row = vec![false; name.len() + 1];
    row[0] = true;
    for wanted in glob.chars() {
        let mut next = vec![false; name.len() + 1];
        next[0] = wanted == '*' && row[0];
        for (at, found) in name.iter().enumerate() {
            next[at + 1] = match wanted {
                '*' => row[at + 1] || next[at],
                '?' => row[at],
                _ => row[at] && wanted == *found,
            };
        }
        row = next;
    }
    row[name.len()]
}

/// Claims come, change and go: what is remembered is what was said, or nothing. Each step is two bytes: a peer, and what it
/// claims.
pub(crate) fn remembered(data: &[u8]) {
    let id = FileId::from_bytes([1; 32]);
    let by = PeerId::from_bytes([2; 32]);
    let name = "a".parse().expect("a name");
    let (version, at, no, kind) = (1, 1, FileNumber(1), FileKind::File);
    let entry = FileEntry { v: RECORD, name, version, size: SIZE, kind, at, by, no, gone: None };
    let claim = |what: u8| Claim { size: SIZE + u64::from(what >> 4), complete: what & 1 == 1 };
    let (first, steps) = data.split_at(data.len().min(16));
    let mut said: BTreeMap<PeerNumber, Claim> = first
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[peer, what]| (PeerNumber((*peer).into()), claim(*what)))
        .collect();
    let claims = said.iter().map(|(peer, claim)| (*peer, *claim)).collect();
    let memory = Remembered::new(1 << 20, 1000);
    let file = Arc::new(RememberedFile::new(id, entry, claims, 0));
    let stamp = memory.stamp(&id);
    memory.remember_file(&file, stamp);
    for [peer, what] in steps.as_chunks::<2>().0 {
        let peer = PeerNumber((*peer).into());
        let claim = (*what & 2 == 0).then(|| claim(*what));
        memory.set_claims(peer, [(&id, claim)].into_iter());
        match claim {
            Some(claim) => said.insert(peer, claim),
            None => said.remove(&peer),
        };
        let Some(file) = memory.file(&id, 1) else { return };
        let (claims, _) = memory.begin_answers(&file);
        assert!(claims.iter().map(|(peer, claim)| (peer, claim)).eq(&said));
        assert_eq!(file.claims(), said.len());
    }
}
