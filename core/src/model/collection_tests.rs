//! Encoding and validation of collections.

use super::*;
use ciborium::cbor;
use proptest::prelude::*;

fn member(path: &str, size: u64) -> Member {
    Member {
        path: path.parse().unwrap(),
        size,
        id: FileId::from_bytes(*blake3::hash(path.as_bytes()).as_bytes()),
        executable: size % 2 == 1,
    }
}

#[test]
fn encoding_matches_documentation_and_is_plain_cbor() {
    let collection = Collection::new(vec![member("b", 300), member("a/x", 7)]).unwrap();
    let value: ciborium::Value = ciborium::from_reader(&collection.encode()[..]).unwrap();
    let id = |path: &str| ciborium::Value::Bytes(blake3::hash(path.as_bytes()).as_bytes().to_vec());
    let expected =
        cbor!(["enjambre collection 1", [["a/x", 7, id("a/x"), true], ["b", 300, id("b"), false]]]);
    assert_eq!(value, expected.unwrap());
    let empty = Collection::new(vec![]).unwrap();
    assert_eq!(Collection::decode(&empty.encode()).unwrap(), empty);
}

#[test]
fn path_that_escapes_or_is_ambiguous_is_refused() {
    let long_part = "a".repeat(256);
    let long = "a/".repeat(2000) + "b";
    for path in [
        "",
        "/",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "a/.",
        "../a",
        "a/../b",
        "a/..",
        "a\\b",
        "\\\\host\\x",
        "a\0b",
        "x.enjambre-part",
        "x.ENJAMBRE-part",
        ".enjambre-part",
        "x.enjambre-part/y",
        &long_part,
        &long,
    ] {
        assert!(path.parse::<MemberPath>().is_err(), "{path:?}");
    }
    for path in ["a", "a/b", "...", "a/..b", "ä/ö ü", "-rf", "x.enjambre-parts", &long_part[1..]] {
        assert!(path.parse::<MemberPath>().is_ok(), "{path:?}");
    }
}

#[test]
fn duplicate_and_file_that_is_directory_are_refused() {
    let twice = Collection::new(vec![member("a", 1), member("b", 1), member("a", 2)]);
    assert!(matches!(twice, Err(CollectionError::Duplicate { path }) if path.as_str() == "a"));
    // "a-b" sorts between "a" and "a/c", so the two are not neighbours.
    let both = Collection::new(vec![member("a", 1), member("a-b", 1), member("a/c/d", 1)]);
    assert!(matches!(both, Err(CollectionError::FileAndDirectory { path }) if path.as_str() == "a"));
    let huge = Collection::new(vec![member("a", MAX_FILE_SIZE + 1)]);
    assert!(matches!(huge, Err(CollectionError::FileTooLarge { .. })));
}

#[test]
fn size_that_contradicts_id_or_other_member_is_refused() {
    let empty = FileId::from_bytes(*blake3::hash(b"").as_bytes());
    let with = |id: FileId, path: &str, size: u64| Member { id, ..member(path, size) };
    let other = member("x", 1).id;
    assert!(Collection::new(vec![with(empty, "a", 0), with(empty, "b", 0), with(other, "c", 5)]).is_ok());
    for wrong in [
        vec![with(empty, "a", MAX_FILE_SIZE)],
        vec![with(other, "a", 0)],
        vec![with(other, "a", 5), with(empty, "b", 0), with(other, "c", 6)],
    ] {
        assert!(matches!(Collection::new(wrong), Err(CollectionError::WrongSize { .. })));
    }
}

/// The same check by brute force.
fn file_and_directory_by_search(paths: &[MemberPath]) -> bool {
    let is_file = |directory: &str| paths.iter().any(|path| path.as_str() == directory);
    paths
        .iter()
        .map(MemberPath::as_str)
        .any(|path| path.match_indices('/').any(|(at, _)| is_file(&path[..at])))
}

#[test]
fn directory_check_is_linear_in_the_length_of_paths() {
    let deep = "a/".repeat(1990);
    let alike = (0..200).map(|number| format!("{deep}{number:03}"));
    // Each is a prefix of the next one.
    let nested = (1..200).map(|length| format!("x{}", "y".repeat(length)));
    for paths in [alike.collect::<Vec<_>>(), nested.collect()] {
        let paths: Vec<MemberPath> = paths.iter().map(|path| path.parse().unwrap()).collect();
        let (mut compared, mut times) = (0, 0);
        let found = file_and_directory(paths.iter(), |path, longer| {
            compared += path.len();
            times += 1;
            longer.starts_with(path)
        });
        assert_eq!(found, None);
        let bytes: usize = paths.iter().map(|path| path.as_str().len()).sum();
        assert!(compared <= 2 * bytes && times <= 2 * paths.len(), "{compared} of {bytes}, {times} times");
    }
}

#[test]
fn case_collision_is_found() {
    let collection = Collection::new(vec![member("Read", 1), member("read", 1)]).unwrap();
    assert_eq!(collection.folding_collision().unwrap().as_str(), "read");
    assert!(Collection::new(vec![member("a", 1), member("b", 1)]).unwrap().folding_collision().is_none());
}

/// An encoded list without validation.
fn raw(members: &[(&str, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_head(&mut out, ARRAY, 2);
    put_text(&mut out, MARK);
    put_head(&mut out, ARRAY, members.len() as u64);
    for (path, size) in members {
        put_head(&mut out, ARRAY, 4);
        put_text(&mut out, path);
        put_head(&mut out, UINT, *size);
        put_head(&mut out, BYTES, 32);
        out.extend_from_slice(&[7; 32]);
        out.push(TRUE);
    }
    out
}

#[test]
fn decoded_list_is_validated() {
    assert!(Collection::decode(&raw(&[("a", 1), ("b", 1)])).is_ok());
    for wrong in [
        &[("b", 1), ("a", 1)][..],
        &[("a", 1), ("a", 1)],
        &[("a", 1), ("a/b", 1)],
        &[("../a", 1)],
        &[("/a", 1)],
        &[("a", u64::MAX)],
    ] {
        assert!(Collection::decode(&raw(wrong)).is_err(), "{wrong:?}");
    }
    let good = raw(&[("a", 1)]);
    assert!(Collection::decode(&[&good[..], &[0]].concat()).is_err(), "surplus bytes");
    for len in 0..good.len() {
        assert!(Collection::decode(&good[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn integer_in_longer_form_is_refused() {
    let mut long = raw(&[("a", 1)]);
    let at = long.windows(2).position(|pair| pair == [0x61, b'a']).unwrap() + 2;
    assert_eq!(long[at], 1);
    long.splice(at..=at, [0x18, 1]);
    assert!(matches!(Collection::decode(&long), Err(CollectionError::Malformed { .. })));
}

#[test]
fn claimed_count_does_not_allocate() {
    let mut out = Vec::new();
    put_head(&mut out, ARRAY, 2);
    put_text(&mut out, MARK);
    let mut million = out.clone();
    put_head(&mut million, ARRAY, 1_000_000);
    assert!(Reader { rest: &million, length: million.len() }.members(1_000_000).capacity() < 10);
    assert!(matches!(Collection::decode(&million), Err(CollectionError::Malformed { .. })));
    put_head(&mut out, ARRAY, 1_000_001);
    assert_eq!(Collection::decode(&out), Err(CollectionError::TooLarge));
}

proptest! {
    #[test]
    fn file_that_is_directory_is_found(
        paths in prop::collection::btree_set("[ab.-](/?[ab.-]){0,5}", 0..12)
    ) {
        let paths: Vec<MemberPath> = paths.iter().filter_map(|path| path.parse().ok()).collect();
        let found = file_and_directory(paths.iter(), |path, longer| longer.starts_with(path));
        prop_assert_eq!(found.is_some(), file_and_directory_by_search(&paths));
        if let Some(path) = found {
            let inside = format!("{path}/");
            prop_assert!(paths.iter().any(|other| other.as_str().starts_with(&inside)));
        }
    }

    #[test]
    fn collection_round_trips_with_one_encoding(
        paths in prop::collection::btree_map("[a-c]{1,3}(/[a-c\u{e9}]{1,30}){0,3}", 0u64..MAX_FILE_SIZE, 0..20)
    ) {
        let members: Vec<Member> = paths.iter().rev().map(|(path, size)| member(path, *size)).collect();
        if let Ok(collection) = Collection::new(members.clone()) {
            let encoded = collection.encode();
            prop_assert_eq!(encoded.len(), collection.encoded_len());
            let decoded = Collection::decode(&encoded).unwrap();
            prop_assert_eq!(decoded.encode(), encoded);
            prop_assert_eq!(decoded, collection);
        }
    }

    #[test]
    fn decoded_bytes_equal_their_encoding(
        at in 0usize..200, to in any::<u8>(), cut in 0usize..200
    ) {
        let mut bytes = Collection::new(vec![member("a/b", 77), member("c", 70_000)]).unwrap().encode();
        let at = at % bytes.len();
        bytes[at] = to;
        bytes.truncate(bytes.len() - cut.min(bytes.len()) * usize::from(cut > 150));
        if let Ok(decoded) = Collection::decode(&bytes) {
            prop_assert_eq!(decoded.encode(), bytes);
        }
    }
}

#[test]
fn empty_directories_are_encoded_after_members() {
    let paths = |paths: &[&str]| paths.iter().map(|path| path.parse().unwrap()).collect::<Vec<MemberPath>>();
    let members = || vec![member("a/x", 7)];
    let id = |path: &str| ciborium::Value::Bytes(blake3::hash(path.as_bytes()).as_bytes().to_vec());
    let collection = Collection::with_directories(members(), paths(&["b/c", "a/empty"])).unwrap();
    assert_eq!(collection.directories(), paths(&["a/empty", "b/c"]));
    let expected = cbor!(["enjambre collection 1", [["a/x", 7, id("a/x"), true]], ["a/empty", "b/c"]]);
    assert_eq!(
        ciborium::from_reader::<ciborium::Value, _>(&collection.encode()[..]).unwrap(),
        expected.unwrap()
    );
    assert_eq!(collection.encode().len(), collection.encoded_len());
    assert_eq!(Collection::decode(&collection.encode()), Ok(collection.clone()));
    assert!(Collection::is_encoded(&collection.encode()));
    for wrong in [&["a"][..], &["a/x"], &["a/x/y"], &["b", "b"], &["b", "b/c"]] {
        assert!(Collection::with_directories(members(), paths(wrong)).is_err(), "{wrong:?}");
    }
    let mut bytes = Collection::new(members()).unwrap().encode();
    bytes[0] += 1;
    bytes.push(0x80);
    assert!(Collection::decode(&bytes).is_err(), "an empty list is not deterministic");
}
