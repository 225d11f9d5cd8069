//! Entries of an index, and of content in a database, in a form for people.

use super::content;
use super::layout::{self, ACKS, DIRTY, FILES, HASHES, HAVE, MEMBERS, META, Place, Record, SWARM, TOMBS};
use crate::model::identity::PublicKey;
use crate::model::record::FileKind;
use crate::readable::{Field, Fields};
use crate::storage::error::StorageError;
use crate::storage::value::{Key, Space};
use crate::swarm::membership::{Membership, SignedMembership};

/// What an entry says. Of hashes, bits and content it is only how many there are.
///
/// # Errors
/// [`StorageError::Corrupt`] for an entry that this program would not have written.
pub fn describe(space: Space, key: &Key, value: &[u8]) -> Result<Fields, StorageError> {
    let odd = || {
        StorageError::corrupt(format!("the entry {key:?} in the space {} is not well formed", space.name()))
    };
    let paged = || {
        let (id, page) = layout::split_page(space, key)?;
        Ok::<_, StorageError>(vec![("id", Field::text(id)), ("page", Field::Number(page as u64))])
    };
    let fields = match space {
        META => {
            let (format, _) = value.split_first_chunk::<8>().ok_or_else(odd)?;
            if *key != layout::format_key() {
                return Err(odd());
            }
            vec![("format", Field::Number(u64::from_be_bytes(*format)))]
        }
        FILES | TOMBS => {
            let (id, _) = layout::split_id(space, key)?;
            let mut fields = vec![("id", Field::text(id))];
            fields.extend(file(Record::decode(&id, value)?));
            fields
        }
        HASHES if value.len().is_multiple_of(32) => {
            let mut fields = paged()?;
            fields.push(("hashes", Field::Number(value.len() as u64 / 32)));
            fields
        }
        HAVE | DIRTY => {
            let mut fields = paged()?;
            let pieces = value.iter().map(|byte| u64::from(byte.count_ones())).sum();
            fields.push(("pieces", Field::Number(pieces)));
            fields
        }
        MEMBERS => {
            let (member, collection) = layout::split_member(key)?;
            vec![("member", Field::text(member)), ("collection", Field::text(collection))]
        }
        ACKS => {
            let (catalogue, id, name) = layout::split_ack(key)?;
            vec![("catalogue", Field::hex(&catalogue)), ("id", Field::text(id)), ("name", Field::text(name))]
        }
        SWARM if *key == layout::swarm_key("membership") => {
            let membership = SignedMembership::from_bytes(value).and_then(|signed| signed.claim().ok());
            let Membership { peer, rights, from, until } = membership.ok_or_else(odd)?;
            vec![
                ("membership", Field::text(peer)),
                ("rights", Field::text(rights)),
                ("from", Field::Time(from)),
                ("until", Field::Time(until)),
            ]
        }
        SWARM if *key == layout::swarm_key("revocations") => {
            let head = value.split_first_chunk::<32>();
            match head.and_then(|(authority, version)| Some((authority, <[u8; 8]>::try_from(version).ok()?)))
            {
                Some((authority, version)) => vec![
                    ("authority", Field::text(PublicKey::from_bytes(*authority))),
                    ("revocations", Field::Number(u64::from_be_bytes(version))),
                ],
                // A whole list, as it was kept before; the next start as a peer takes it away.
                None => vec![("obsolete", Field::Number(value.len() as u64))],
            }
        }
        SWARM => {
            let peer = layout::read_revoked_key(key).ok_or_else(odd)?;
            let version = u64::from_be_bytes(value.try_into().map_err(|_| odd())?);
            vec![("revoked", Field::text(peer)), ("version", Field::Time(version))]
        }
        _ if content::SPACES.contains(&space) => {
            let (id, rest) = layout::split_id(space, key)?;
            let [a, b, c, d, e, f] = rest else { return Err(odd()) };
            vec![
                ("id", Field::text(id)),
                ("piece", Field::Number(u32::from_be_bytes([*a, *b, *c, *d]).into())),
                ("part", Field::Number(u16::from_be_bytes([*e, *f]).into())),
                ("length", Field::Number(value.len() as u64)),
            ]
        }
        _ => return Err(odd()),
    };
    Ok(fields)
}

fn file(record: Record) -> Fields {
    let path = record.place.path().map(|path| Field::text(path.display()));
    let Record { size, kind, published, place, names, added_ms, complete, withdrawn } = record;
    let kind = match kind {
        FileKind::File => "file",
        FileKind::Collection => "collection",
    };
    let place = match place {
        Place::Database => "database",
        Place::Files => "files",
        Place::Linked { .. } => "linked",
    };
    let mut fields =
        vec![("size", Field::Number(size)), ("kind", Field::text(kind)), ("place", Field::text(place))];
    fields.extend(path.map(|path| ("path", path)));
    fields.extend([
        ("names", Field::List(names.iter().map(|name| Field::text(&name.name)).collect())),
        ("published", Field::Flag(published)),
        ("added", Field::Time(added_ms)),
        ("complete", Field::Flag(complete)),
        ("withdrawn", Field::Flag(withdrawn)),
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
        fn any_entry_is_described_or_refused(
            space in prop::sample::select([SPACES, content::SPACES].concat()),
            key in prop::collection::vec(any::<u8>(), 1..60), value in prop::collection::vec(any::<u8>(), 0..70),
        ) {
            let _ = describe(space, &Key::new(key).unwrap(), &value);
        }
    }

    #[test]
    fn what_is_known_of_a_swarm_is_told_also_as_it_was_kept_before() {
        let key = layout::swarm_key("revocations");
        let now = [&[1; 32][..], &7_u64.to_be_bytes()].concat();
        assert_eq!(describe(SWARM, &key, &now).unwrap()[1], ("revocations", Field::Number(7)));
        for before in [&[][..], &[1; 39], &[1; 110]] {
            let length = Field::Number(before.len() as u64);
            assert_eq!(describe(SWARM, &key, before).unwrap(), [("obsolete", length)]);
        }
    }

    #[test]
    fn of_content_it_is_said_where_it_belongs_and_how_long_it_is() {
        let key = Key::new([&[1; 32][..], &[0, 0, 0, 2, 0, 3]].concat()).unwrap();
        let fields = describe(content::SPACES[0], &key, &[0; 9]).unwrap();
        let numbers =
            [("piece", 2), ("part", 3), ("length", 9)].map(|(name, number)| (name, Field::Number(number)));
        assert_eq!(fields[1..], numbers);
    }
}
