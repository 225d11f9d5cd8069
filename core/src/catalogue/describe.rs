//! Entries of a catalogue in a form for people.

use super::layout::{
    self, AUTHORITY, CLEARED, Claim, FILE_NAMES, FILES, FileEntry, FormatRecord, INVITATIONS,
    InvitationRecord, LEASES, LeaseRecord, MEMBERS, META, MemberRecord, OFFERS, PEERS, PINS, PROVIDERS,
    PinRecord, RESERVATIONS, REVOKED, ReservationRecord, ReservedRecord, SESSIONS, VERSIONS, VersionRecord,
};
use crate::model::id::{FileId, PeerId};
use crate::model::identity::KeyPair;
use crate::model::record::FileKind;
use crate::readable::{Field, Fields};
use crate::storage::error::StorageError;
use crate::storage::value::Space;

/// What an entry says. Session ids, by which others could act in a peer's name, are only there in part, and of the
/// authority's key only the public half.
///
/// # Errors
/// [`StorageError::Corrupt`] for an entry that this program would not have written.
pub fn describe(space: Space, key: &[u8], value: &[u8]) -> Result<Fields, StorageError> {
    let odd = || layout::damaged(space, key);
    let peer = |bytes| layout::read_peer(space, bytes).map(|peer| Field::Number(peer.0));
    let peer_id = |bytes| PeerId::try_from(bytes).map(Field::text).map_err(|_| odd());
    let file = |bytes| layout::read_file_key(space, bytes).map(Field::text);
    let pair = || {
        let (first, second) = key.split_first_chunk::<6>().ok_or_else(odd)?;
        Ok::<_, StorageError>((peer(first)?, peer(second)?))
    };
    let fields = match space {
        META => describe_fact(key, value)?,
        VERSIONS => {
            let (name, version) = layout::read_version_key(key)?;
            let VersionRecord { id, size, kind, at, by, no, .. } = layout::decode(space, value)?;
            let mut fields = vec![("name", Field::text(name)), ("version", Field::Number(version))];
            fields.push(("id", Field::text(id)));
            fields.extend(published(size, kind, at, &by, no.0));
            fields
        }
        FILES => {
            let FileEntry { name, version, size, kind, at, by, no, gone, .. } = layout::decode(space, value)?;
            let mut fields = vec![("id", file(key)?)];
            fields.extend([("name", Field::text(name)), ("version", Field::Number(version))]);
            fields.extend(published(size, kind, at, &by, no.0));
            fields.extend(gone.map(|gone| ("gone", Field::Time(gone))));
            fields
        }
        FILE_NAMES => {
            let (id, rest) = key.split_first_chunk::<32>().ok_or_else(odd)?;
            let (name, version) = layout::read_version_key(rest)?;
            let id = Field::text(FileId::from_bytes(*id));
            vec![("id", id), ("name", Field::text(name)), ("version", Field::Number(version))]
        }
        PROVIDERS => {
            let (file, peer) = pair()?;
            let Claim { size, complete } = Claim::decode(value)?;
            let claim = [("size", Field::Number(size)), ("complete", Field::Flag(complete))];
            [("file_number", file), ("peer_number", peer)].into_iter().chain(claim).collect()
        }
        OFFERS => {
            let (peer, file) = pair()?;
            let (Claim { size, complete }, hello) = Claim::decode_offer(value)?;
            let claim = [("size", Field::Number(size)), ("complete", Field::Flag(complete))];
            let session = [("peer_number", peer), ("file_number", file), ("hello", Field::Time(hello))];
            session.into_iter().chain(claim).collect()
        }
        CLEARED => vec![("peer_number", peer(key)?), ("mark", Field::hex(value))],
        PEERS => vec![("peer", peer_id(key)?), ("peer_number", peer(value)?)],
        LEASES => {
            let LeaseRecord { id, session, hello, renewed, endpoints, left, settled, .. } =
                layout::decode(space, value)?;
            vec![
                ("peer_number", peer(key)?),
                ("peer", Field::text(id)),
                ("session", Field::secret(&session.0)),
                ("hello", Field::Time(hello)),
                ("renewed", Field::Time(renewed)),
                ("endpoints", Field::List(endpoints.iter().map(Field::text).collect())),
                ("left", Field::Flag(left)),
                ("settled", Field::Flag(settled)),
            ]
        }
        SESSIONS => vec![("session", Field::secret(key)), ("peer_number", peer(value)?)],
        PINS => {
            let PinRecord { size, held, at, by, .. } = layout::decode(space, value)?;
            vec![
                ("id", file(key)?),
                ("size", Field::Number(size)),
                ("held", Field::Flag(held)),
                ("at", Field::Time(at)),
                ("by", Field::text(by)),
            ]
        }
        AUTHORITY => {
            let secret = value.try_into().map_err(|_| odd())?;
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
            vec![("peer", peer_id(key)?), ("version", Field::Time(layout::read_number(space, value)?))]
        }
        RESERVATIONS => {
            let name = std::str::from_utf8(key).map_err(|_| odd())?;
            let ReservationRecord { by, at, .. } = layout::decode(space, value)?;
            vec![("name", Field::text(name)), ("by", Field::text(by)), ("at", Field::Time(at))]
        }
        _ => return Err(odd()),
    };
    Ok(fields)
}

fn published(size: u64, kind: FileKind, at: u64, by: &PeerId, number: u64) -> Fields {
    let kind = match kind {
        FileKind::File => "file",
        FileKind::Collection => "collection",
    };
    vec![
        ("size", Field::Number(size)),
        ("kind", Field::text(kind)),
        ("at", Field::Time(at)),
        ("by", Field::text(by)),
        ("file_number", Field::Number(number)),
    ]
}

/// An entry of the space `meta`.
fn describe_fact(key: &[u8], value: &[u8]) -> Result<Fields, StorageError> {
    Ok(match key {
        b"format" => {
            let FormatRecord { v, what, .. } = layout::decode(META, value)?;
            vec![("format", Field::Number(v)), ("what", Field::Text(what))]
        }
        b"catalogue" => vec![("catalogue", Field::hex(value))],
        b"stamp" => vec![("stamp", Field::Time(layout::read_number(META, value)?))],
        b"swept" => vec![("swept", Field::Time(layout::read_number(META, value)?))],
        b"forgot" => vec![("forgot", Field::Time(layout::read_number(META, value)?))],
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
    use crate::protocol::message::SessionId;
    use proptest::prelude::*;

    #[test]
    fn a_session_is_told_only_in_part() {
        let key = layout::peer_key(layout::PeerNumber(7));
        let record = LeaseRecord {
            v: 1,
            id: PeerId::from_bytes([1; 32]),
            session: SessionId([0xab; 16]),
            hello: 5,
            renewed: 6,
            endpoints: vec!["tcp://127.0.0.1:1".parse().unwrap()],
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
    fn of_the_authority_only_the_public_half_is_told() {
        let pair = KeyPair::generate();
        let fields = describe(AUTHORITY, b"key", &pair.secret()).unwrap();
        assert_eq!(fields, [("authority", Field::text(pair.public()))]);
    }

    proptest! {
        #[test]
        fn any_entry_is_described_or_refused(
            space in prop::sample::select(SPACES),
            key in prop::collection::vec(any::<u8>(), 0..60), value in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = describe(space, &key, &value);
        }
    }
}
