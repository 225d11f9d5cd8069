use proptest::prelude::*;

use enjambre_core::{FileId, Name, UnixMillis};

use super::*;

proptest! {
    #[test]
    fn versions_sort_by_name_newest_first(
        a in "[a-zæ日 .]{1,8}", b in "[a-zæ日 .]{1,8}", x in any::<u64>(), y in any::<u64>(),
    ) {
        let (Ok(a), Ok(b)) = (a.parse::<Name>(), b.parse::<Name>()) else { return Ok(()) };
        let (first, second) = (version_key(&a, x), version_key(&b, y));
        prop_assert_eq!(first.cmp(&second), a.cmp(&b).then(y.cmp(&x)));
        prop_assert_eq!(read_version_key(first.as_bytes()).unwrap(), (a, x));
    }

    #[test]
    fn decoders_any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = read_version_key(&bytes);
        let _ = version_key_of_file_name(&bytes);
        let _ = read_provider_key(&bytes);
        let _ = read_offer_key(&bytes);
        let _ = read_pin_key(&bytes);
        let _ = Claim::decode(&bytes);
        let _ = Claim::decode_offer(&bytes);
        let _ = decode::<LeaseRecord>(LEASES, &bytes);
        let _ = decode::<FileEntry>(FILES, &bytes);
    }

    #[test]
    fn claims_round_trip_and_sort_by_both_numbers(
        size in any::<u64>(), complete in any::<bool>(), began in 0..=MAX_NUMBER,
        a in (0..=MAX_NUMBER, 0..=MAX_NUMBER), b in (0..=MAX_NUMBER, 0..=MAX_NUMBER),
    ) {
        let (claim, began) = (Claim { size, complete }, UnixMillis(began));
        prop_assert_eq!(Claim::decode(&claim.encode()).unwrap(), claim);
        prop_assert_eq!(Claim::decode_offer(&claim.encode_offer(began)).unwrap(), (claim, began));
        let key = |(file, peer): (u64, u64)| provider_key(FileNumber(file), PeerNumber(peer));
        prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
        prop_assert_eq!(read_provider_key(key(a).as_bytes()).unwrap(), PeerNumber(a.1));
        let offer = offer_key(PeerNumber(a.0), FileNumber(a.1));
        prop_assert_eq!(read_offer_key(offer.as_bytes()).unwrap(), FileNumber(a.1));
    }

    #[test]
    fn id_range_contains_exactly_ids_with_the_prefix(
        id in any::<[u8; 32]>(), other in any::<[u8; 32]>(), shared in 0usize..32, length in 8usize..64,
    ) {
        let mut near = other;
        near[..shared].copy_from_slice(&id[..shared]);
        let text = hex::encode(id);
        for candidate in [id, near, other] {
            let inside = id_range(&text[..length]).contains(&file_key(&FileId::from_bytes(candidate)));
            prop_assert_eq!(inside, hex::encode(candidate).starts_with(&text[..length]));
        }
    }
}

#[test]
fn longest_name_fits_a_key() {
    let name: Name = "x".repeat(255).parse().unwrap();
    assert_eq!(file_name_key(&FileId::from_bytes([1; 32]), &name, 1).as_bytes().len(), 32 + 255 + 1 + 8);
}
