//! Readable descriptions of the entries of a catalogue.

use super::gaps::TimeRecord;
use super::layout::{
    self, AUTHORITY, CLEARED, Claim, FILE_NAMES, FILES, FileEntry, FileNumber, FormatRecord, INVITATIONS,
    InvitationRecord, LEASES, LeaseRecord, MEMBERS, META, MemberRecord, OFFERS, PEERS, PINNED, PINNERS, PINS,
    PROVIDERS, PinId, PinRecord, RESERVATIONS, REVOKED, ReservationRecord, ReservedRecord, SESSIONS,
    VERSIONS, VersionRecord,
};
use enjambre_core::storage::inspect::{Field, Fields};
use enjambre_core::{FileId, FileRecord, KeyPair, PeerId, Space, StorageError, UnixMillis};

/// Describes an entry. Session ids, with which others could impersonate a peer, are shortened, and only the public half of
/// the authority's key is shown.
///
/// # Errors
/// [`StorageError::Corrupt`] if this program would not have written the entry.
pub fn describe(space: Space, key: &[u8], value: &[u8]) -> Result<Fields, StorageError> {
    let malformed = || layout::damaged(space, key);
    let peer = |bytes| layout::read_peer(space, bytes).map(|peer| Field::Number(peer.0));
    let peer_id = |bytes| PeerId::try_from(bytes).map(Field::text).map_err(|_| malformed());
    let pair = || {
        let (first, second) = key.split_first_chunk::<6>().ok_or_else(malformed)?;
        Ok::<_, StorageError>((peer(first)?, peer(second)?))
    };
    let claim =
        |Claim { size, complete }| [("size", Field::Number(size)), ("complete", Field::Flag(complete))];
    let fields = match space {
        META => describe_fact(key, value)?,
        VERSIONS => {
            let (name, version) = layout::read_version_key(key)?;
            let record: VersionRecord = layout::decode(space, value)?;
            let no = record.no;
            describe_file(record.with_name(name, version, 0), no)
        }
        FILES => {
            let entry: FileEntry = layout::decode(space, value)?;
            let (no, gone) = (entry.no, entry.gone);
            let mut fields = describe_file(entry.with_id(layout::read_file_key(space, key)?, 0), no);
            fields.extend(gone.map(|gone| ("gone", Field::Time(gone))));
            fields
        }
        FILE_NAMES => {
            let (id, rest) = key.split_first_chunk::<32>().ok_or_else(malformed)?;
            let (name, version) = layout::read_version_key(rest)?;
            let id = Field::text(FileId::from_bytes(*id));
            vec![("id", id), ("name", Field::text(name)), ("version", Field::Number(version))]
        }
        PROVIDERS => {
            let (file, peer) = pair()?;
            let mut fields = vec![("file_number", file), ("peer_number", peer)];
            fields.extend(claim(Claim::decode(value)?));
            fields
        }
        OFFERS => {
            let (peer, file) = pair()?;
            let (stored, began) = Claim::decode_offer(value)?;
            let mut fields =
                vec![("peer_number", peer), ("file_number", file), ("began", Field::Time(began))];
            fields.extend(claim(stored));
            fields
        }
        CLEARED => vec![("peer_number", peer(key)?), ("mark", Field::hex(value))],
        PEERS => vec![("peer", peer_id(key)?), ("peer_number", peer(value)?)],
        LEASES => {
            let lease: LeaseRecord = layout::decode(space, value)?;
            let LeaseRecord { id, session, began, renewed, endpoints, requested, .. } = lease;
            vec![
                ("peer_number", peer(key)?),
                ("peer", Field::text(id)),
                ("session", Field::secret(&session.0)),
                ("began", Field::Time(began)),
                ("renewed", Field::Time(renewed)),
                ("endpoints", Field::List(endpoints.iter().map(Field::text).collect())),
                ("requested", Field::List(requested.iter().map(Field::text).collect())),
                ("authenticated", Field::Flag(lease.authenticated)),
                ("offered", Field::Flag(lease.offered)),
                ("left", Field::Flag(lease.left)),
                ("settled", Field::Flag(lease.settled)),
            ]
        }
        SESSIONS => vec![("session", Field::secret(key)), ("peer_number", peer(value)?)],
        PINS => {
            let PinRecord { size, complete, at } = layout::decode(space, value)?;
            let PinId { file, by } = layout::read_pin_key(key)?;
            vec![
                ("id", Field::text(file)),
                ("size", Field::Number(size)),
                ("complete", Field::Flag(complete)),
                ("at", Field::Time(at)),
                ("by", Field::text(by)),
            ]
        }
        PINNED => {
            let ReservedRecord { bytes, pins, .. } = layout::decode(space, value)?;
            let id = Field::text(layout::read_file_key(space, key)?);
            vec![("id", id), ("reserved", Field::Number(bytes)), ("pins", Field::Number(pins))]
        }
        PINNERS => {
            let ReservedRecord { bytes, pins, .. } = layout::decode(space, value)?;
            vec![("peer", peer_id(key)?), ("reserved", Field::Number(bytes)), ("pins", Field::Number(pins))]
        }
        AUTHORITY => {
            let secret = value.try_into().map_err(|_| malformed())?;
            vec![("authority", Field::text(KeyPair::from_secret(secret).public()))]
        }
        INVITATIONS => {
            let InvitationRecord { rights, uses, until, at, .. } = layout::decode(space, value)?;
            vec![
                ("invitation", Field::secret(key)),
                ("rights", Field::text(rights)),
                ("uses", Field::Number(u64::from(uses))),
                ("until", Field::Time(until)),
                ("at", Field::Time(at)),
            ]
        }
        MEMBERS => {
            let MemberRecord { rights, joined, revoked, invitations, .. } = layout::decode(space, value)?;
            let mut fields = vec![
                ("peer", peer_id(key)?),
                ("rights", Field::text(rights)),
                ("joined", Field::Time(joined)),
            ];
            fields.extend(revoked.map(|revoked| ("revoked", Field::Time(revoked))));
            if !invitations.is_empty() {
                let invitations = invitations.iter().map(|id| Field::secret(&id.0)).collect();
                fields.push(("invitations", Field::List(invitations)));
            }
            fields
        }
        REVOKED => {
            vec![
                ("peer", peer_id(key)?),
                ("version", Field::Time(UnixMillis(layout::read_number(space, value)?))),
            ]
        }
        RESERVATIONS => {
            let name = std::str::from_utf8(key).map_err(|_| malformed())?;
            let ReservationRecord { by, at, .. } = layout::decode(space, value)?;
            vec![("name", Field::text(name)), ("by", Field::text(by)), ("at", Field::Time(at))]
        }
        _ => return Err(malformed()),
    };
    Ok(fields)
}

fn describe_file(record: FileRecord, number: FileNumber) -> Fields {
    let FileRecord { id, name, version, size, kind, published_ms, publisher, .. } = record;
    vec![
        ("id", Field::text(id)),
        ("name", Field::text(name)),
        ("version", Field::Number(version)),
        ("size", Field::Number(size)),
        ("kind", Field::text(kind)),
        ("at", Field::Time(published_ms)),
        ("by", Field::text(publisher)),
        ("file_number", Field::Number(number.0)),
    ]
}

fn describe_fact(key: &[u8], value: &[u8]) -> Result<Fields, StorageError> {
    Ok(match key {
        b"format" => {
            let FormatRecord { v, what, .. } = layout::decode(META, value)?;
            vec![("format", Field::Number(v)), ("what", Field::Text(what))]
        }
        b"catalogue" => vec![("catalogue", Field::hex(value))],
        b"stamp" => vec![("stamp", Field::Time(UnixMillis(layout::read_number(META, value)?)))],
        b"time" => {
            let TimeRecord { number, written, gaps } = layout::decode(META, value)?;
            vec![
                ("number", Field::Number(number)),
                ("time", Field::Time(written)),
                ("gaps", Field::Number(gaps.len() as u64)),
            ]
        }
        b"swept" => vec![("swept", Field::Time(UnixMillis(layout::read_number(META, value)?)))],
        b"expired" => vec![("expired", Field::Time(UnixMillis(layout::read_number(META, value)?)))],
        b"revocations" => vec![("revocations", Field::Number(layout::read_number(META, value)?))],
        b"numbers" => vec![("numbers", Field::Number(layout::read_number(META, value)?))],
        b"reserved" => {
            let ReservedRecord { bytes, pins, .. } = layout::decode(META, value)?;
            vec![("reserved", Field::Number(bytes)), ("pins", Field::Number(pins))]
        }
        _ => return Err(layout::damaged(META, key)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::layout::SPACES;
    use enjambre_core::SessionId;
    use proptest::prelude::*;

    #[test]
    fn session_id_is_shortened() {
        let key = layout::peer_key(layout::PeerNumber(7));
        let record = LeaseRecord {
            id: PeerId::from_bytes([1; 32]),
            session: SessionId([0xab; 16]),
            began: UnixMillis(5),
            renewed: UnixMillis(6),
            endpoints: vec!["tcp://127.0.0.1:1".parse().unwrap()],
            requested: Vec::new(),
            authenticated: true,
            offered: false,
            left: false,
            settled: true,
        };
        let lease = describe(LEASES, key.as_bytes(), &layout::encode(&record)).unwrap();
        let session = describe(SESSIONS, &[0xab; 16], &[0, 0, 0, 0, 0, 7]).unwrap();
        for fields in [&lease, &session] {
            assert!(fields.contains(&("session", Field::text("abababab…"))), "{fields:?}");
            assert!(fields.contains(&("peer_number", Field::Number(7))), "{fields:?}");
            assert!(!format!("{fields:?}").contains("ababababab"), "{fields:?}");
        }
    }

    #[test]
    fn authority_shows_only_the_public_key() {
        let pair = KeyPair::generate();
        let fields = describe(AUTHORITY, b"key", &pair.secret()).unwrap();
        assert_eq!(fields, [("authority", Field::text(pair.public()))]);
    }

    proptest! {
        #[test]
        fn arbitrary_entry_does_not_panic(
            space in prop::sample::select(SPACES),
            key in prop::collection::vec(any::<u8>(), 0..60), value in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = describe(space, &key, &value);
        }
    }
}
