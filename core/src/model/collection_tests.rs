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
fn the_encoding_is_the_documented_one_and_plain_cbor() {
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
fn paths_that_could_leave_the_target_or_confuse_are_refused() {
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
fn duplicates_and_files_that_are_directories_are_refused() {
    let twice = Collection::new(vec![member("a", 1), member("b", 1), member("a", 2)]);
    assert!(matches!(twice, Err(CollectionError::Duplicate { path }) if path.as_str() == "a"));
    // "a-b" sorts between "a" and "a/c", so the two are not neighbours.
    let both = Collection::new(vec![member("a", 1), member("a-b", 1), member("a/c/d", 1)]);
    assert!(matches!(both, Err(CollectionError::FileAndDirectory { path }) if path.as_str() == "a"));
    let huge = Collection::new(vec![member("a", MAX_FILE_SIZE + 1)]);
    assert!(matches!(huge, Err(CollectionError::FileTooLarge { .. })));
}

/// What is found by looking every directory of every path up.
fn file_and_directory_by_search(paths: &[MemberPath]) -> bool {
    let is_file = |directory: &str| paths.iter().any(|path| path.as_str() == directory);
    paths
        .iter()
        .map(MemberPath::as_str)
        .any(|path| path.match_indices('/').any(|(at, _)| is_file(&path[..at])))
}

#[test]
fn the_check_reads_every_path_a_few_times_however_deep_and_alike_they_are() {
    let deep = "a/".repeat(1990);
    let alike = (0..200).map(|number| format!("{deep}{number:03}"));
    // Each begins the next one.
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
fn a_collision_of_cases_is_found() {
    let collection = Collection::new(vec![member("Read", 1), member("read", 1)]).unwrap();
    assert_eq!(collection.folding_collision().unwrap().as_str(), "read");
    assert!(Collection::new(vec![member("a", 1), member("b", 1)]).unwrap().folding_collision().is_none());
}

/// A list of members written without any check.
fn raw(members: &[(&str, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    head(&mut out, 4, 2);
    text(&mut out, MARK);
    head(&mut out, 4, members.len() as u64);
    for (path, size) in members {
        head(&mut out, 4, 4);
        text(&mut out, path);
        head(&mut out, 0, *size);
        head(&mut out, 2, 32);
        out.extend_from_slice(&[7; 32]);
        out.push(TRUE);
    }
    out
}

#[test]
fn a_decoded_list_is_checked_like_a_new_one() {
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
fn numbers_that_are_not_in_their_shortest_form_are_refused() {
    let mut long = raw(&[("a", 1)]);
    let at = long.windows(2).position(|pair| pair == [0x61, b'a']).unwrap() + 2;
    assert_eq!(long[at], 1);
    long.splice(at..=at, [0x18, 1]);
    assert!(matches!(Collection::decode(&long), Err(CollectionError::Malformed { .. })));
}

#[test]
fn a_claimed_count_allocates_nothing() {
    let mut out = Vec::new();
    head(&mut out, 4, 2);
    text(&mut out, MARK);
    let mut million = out.clone();
    head(&mut million, 4, 1_000_000);
    assert!(matches!(Collection::decode(&million), Err(CollectionError::Malformed { .. })));
    head(&mut out, 4, 1_000_001);
    assert_eq!(Collection::decode(&out), Err(CollectionError::TooLarge));
}

proptest! {
    #[test]
    fn a_file_that_is_a_directory_is_found_wherever_it_sorts(
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
    fn a_collection_is_read_back_and_has_one_encoding(
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
    fn whatever_decodes_is_the_only_encoding_of_itself(
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
