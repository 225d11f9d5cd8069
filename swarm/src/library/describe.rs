//! Human-readable descriptions of the entries of an index and of a content database.

use super::content;
use super::layout::{
    self, ACKS, ContentPlace, DIRTY, DOWNLOADS, DownloadRecord, DownloadState, FILES, HASHES, HAVE, MEMBERS,
    META, Record, SWARM, TOMBS,
};
use enjambre_core::model::identity::PublicKey;
use enjambre_core::model::membership::{Membership, SignedMembership};
use enjambre_core::storage::inspect::{Field, Fields};
use enjambre_core::{Key, Space, StorageError, UnixMillis};

/// Describes an entry. Hashes, bitmaps and content are summarized by their size.
///
/// # Errors
/// [`StorageError::Corrupt`] if the entry is malformed.
pub fn describe(space: Space, key: &Key, value: &[u8]) -> Result<Fields, StorageError> {
    let malformed = || StorageError::corrupt(format!("the entry {key} in the space {}", space.name()));
    let paged = |name, count| {
        let (id, page) = layout::split_page(space, key)?;
        let fields =
            [("id", Field::text(id)), ("page", Field::Number(page as u64)), (name, Field::Number(count))];
        Ok::<_, StorageError>(fields.to_vec())
    };
    let fields = match space {
        META => {
            let (format, _) = value.split_first_chunk::<8>().ok_or_else(malformed)?;
            if *key != layout::format_key() {
                return Err(malformed());
            }
            vec![("format", Field::Number(u64::from_be_bytes(*format)))]
        }
        FILES | TOMBS => {
            let (id, _) = layout::split_id(space, key)?;
            let mut fields = vec![("id", Field::text(id))];
            fields.extend(file(Record::decode(&id, value)?));
            fields
        }
        HASHES if value.len().is_multiple_of(32) => paged("hashes", value.len() as u64 / 32)?,
        HAVE | DIRTY => paged("pieces", value.iter().map(|byte| u64::from(byte.count_ones())).sum())?,
        MEMBERS => {
            let (member, collection) = layout::split_member(key)?;
            vec![("member", Field::text(member)), ("collection", Field::text(collection))]
        }
        ACKS => {
            let (catalogue, id, name) = layout::split_ack(key)?;
            let ack = layout::read_ack(value)?;
            vec![
                ("catalogue", Field::hex(&catalogue.0)),
                ("id", Field::text(id)),
                ("name", Field::text(name)),
                ("acknowledged", Field::Time(ack.at)),
                ("version", Field::Number(ack.version)),
            ]
        }
        DOWNLOADS => {
            let (id, DownloadRecord { order, name, kind, size, done, added_ms, state }) =
                layout::read_download(key, value)?;
            let (state, error) = match state {
                DownloadState::Queued => ("queued", None),
                DownloadState::Paused => ("paused", None),
                DownloadState::Complete => ("complete", None),
                DownloadState::Failed(error) => ("failed", Some(("error", Field::text(error)))),
            };
            let mut fields = vec![
                ("id", Field::text(id)),
                ("order", Field::Number(order)),
                ("name", Field::text(name)),
                ("kind", Field::text(kind)),
                ("size", Field::Number(size)),
                ("done", Field::Number(done)),
                ("added", Field::Time(added_ms)),
                ("state", Field::text(state)),
            ];
            fields.extend(error);
            fields
        }
        SWARM if *key == layout::swarm_key("membership") => {
            let membership = SignedMembership::from_bytes(value).and_then(|signed| signed.claim().ok());
            let Membership { peer, rights, from, until } = membership.ok_or_else(malformed)?;
            vec![
                ("membership", Field::text(peer)),
                ("rights", Field::text(rights)),
                ("from", Field::Time(from)),
                ("until", Field::Time(until)),
            ]
        }
        SWARM if *key == layout::swarm_key("revocations") => {
            let (authority, version) = value.split_first_chunk::<32>().ok_or_else(malformed)?;
            let version = version.try_into().map_err(|_| malformed())?;
            vec![
                ("authority", Field::text(PublicKey::from_bytes(*authority))),
                ("revocations", Field::Number(u64::from_be_bytes(version))),
            ]
        }
        SWARM => {
            let peer = layout::read_revoked_key(key).ok_or_else(malformed)?;
            let version = u64::from_be_bytes(value.try_into().map_err(|_| malformed())?);
            vec![("revoked", Field::text(peer)), ("version", Field::Time(UnixMillis(version)))]
        }
        _ if content::SPACES.contains(&space) => {
            let (id, rest) = layout::split_id(space, key)?;
            let [a, b, c, d, e, f] = rest else { return Err(malformed()) };
            vec![
                ("id", Field::text(id)),
                ("piece", Field::Number(u32::from_be_bytes([*a, *b, *c, *d]).into())),
                ("part", Field::Number(u16::from_be_bytes([*e, *f]).into())),
                ("length", Field::Number(value.len() as u64)),
            ]
        }
        _ => return Err(malformed()),
    };
    Ok(fields)
}

fn file(record: Record) -> Fields {
    let path = record.place.path().map(|path| Field::text(path.display()));
    let copies: Vec<Field> =
        record.copies.iter().filter_map(|copy| Some(Field::text(copy.path()?.display()))).collect();
    let Record { size, kind, published, place, names, added_ms, complete, withdrawn, .. } = record;
    let place = match place {
        ContentPlace::Database => "database",
        ContentPlace::Files => "files",
        ContentPlace::Linked { .. } => "linked",
    };
    let mut fields =
        vec![("size", Field::Number(size)), ("kind", Field::text(kind)), ("place", Field::text(place))];
    fields.extend(path.map(|path| ("path", path)));
    if !copies.is_empty() {
        fields.push(("copies", Field::List(copies)));
    }
    fields.extend([
        ("names", Field::List(names.iter().map(|name| Field::text(&name.name)).collect())),
        ("published", Field::Flag(published)),
        ("added", Field::Time(added_ms)),
        ("complete", Field::Flag(complete)),
        ("withdrawn", Field::Flag(withdrawn.is_some())),
    ]);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::SPACES;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_entry_does_not_panic(
            space in prop::sample::select([SPACES, content::SPACES].concat()),
            key in prop::collection::vec(any::<u8>(), 1..60), value in prop::collection::vec(any::<u8>(), 0..70),
        ) {
            let _ = describe(space, &Key::new(key).unwrap(), &value);
        }
    }

    #[test]
    fn revocations_entry_shows_version() {
        let key = layout::swarm_key("revocations");
        let value = [&[1; 32][..], &7_u64.to_be_bytes()].concat();
        assert_eq!(describe(SWARM, &key, &value).unwrap()[1], ("revocations", Field::Number(7)));
        for malformed in [&[][..], &[1; 39], &[1; 110]] {
            assert!(describe(SWARM, &key, malformed).is_err());
        }
    }

    #[test]
    fn content_entry_shows_position_and_length() {
        let key = Key::new([&[1; 32][..], &[0, 0, 0, 2, 0, 3]].concat()).unwrap();
        let fields = describe(content::SPACES[0], &key, &[0; 9]).unwrap();
        let numbers =
            [("piece", 2), ("part", 3), ("length", 9)].map(|(name, number)| (name, Field::Number(number)));
        assert_eq!(fields[1..], numbers);
    }
}
