//! Fuzz targets: entries of a damaged database, and patterns.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::catalogue::check_format;
use super::describe::describe;
use super::layout::{
    self, Claim, FILES, FileEntry, FileNumber, FormatRecord, INVITATIONS, InvitationRecord, LEASES,
    LeaseRecord, MEMBERS, META, MemberRecord, PINS, PinRecord, RESERVATIONS, ReservationRecord,
    ReservedRecord, VERSIONS, VersionRecord,
};
use super::pattern::Pattern;
use enjambre_core::{Name, Space};

/// A decoded record survives encoding and decoding.
fn record<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(space: Space, data: &[u8]) {
    if let Ok(record) = layout::decode::<T>(space, data) {
        assert_eq!(
            layout::decode::<T>(space, &layout::encode(&record)).expect("it was just written"),
            record
        );
    }
}

/// An entry of any space: a byte for the space, one for the length of the key, then key and value.
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
    if let Ok(pin) = layout::read_pin_key(key) {
        assert_eq!(layout::pin_key(&pin).as_bytes(), key);
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
    if let Ok((claim, began)) = Claim::decode_offer(value) {
        let written = claim.encode_offer(began);
        assert!(written.len() <= value.len());
        assert_eq!(Claim::decode_offer(&written).expect("it was just written"), (claim, began));
    }
    match space {
        META => {
            let _ = check_format(value);
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

/// A pattern and a text, each on a line.
pub(crate) fn pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (glob, name) = text.split_once('\n').unwrap_or((text, ""));
    // The time of the model is the product of the lengths, which is also the limit of the implementation.
    if glob.len() > 300 || name.len() > 300 {
        return;
    }
    let pattern = Pattern::new(glob);
    let matches = pattern.matches(name);
    let expected = match glob.strip_prefix('/').map(str::parse::<Name>) {
        Some(Ok(only)) => only.as_str() == name,
        _ if glob.contains(['*', '?']) => matches_by_table(glob, name),
        _ => name.contains(glob),
    };
    assert_eq!(matches, expected);
    assert!(!matches || name.starts_with(pattern.prefix()));
}

/// Matches each prefix of the glob against each prefix of the text, shorter ones first.
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
