//! Collections with paths outside of the output directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use enjambre_core::{Collection, FileId, Member};
use enjambre_tests::content::read_tree;
use enjambre_tests::fake_provider::FakeProvider;
use enjambre_tests::node::{Peer, World};
use enjambre_tests::process::Output;

/// The path in a valid collection that a test replaces.
const VALID: &str = "good/file";

/// Encodes a CBOR text.
fn text(text: &str) -> Vec<u8> {
    let length = text.len() as u8;
    let head = if length < 24 { vec![0x60 + length] } else { vec![0x78, length] };
    [&head, text.as_bytes()].concat()
}

/// Encodes a collection and replaces some of its bytes.
fn encode_list(paths: &[&str], old: &[u8], new: &[u8]) -> Vec<u8> {
    let member = |path: &&str| Member {
        path: path.parse().unwrap(),
        size: 4,
        id: FileId::from_bytes(*blake3::hash(b"evil").as_bytes()),
        executable: true,
    };
    let valid = Collection::new(paths.iter().map(member).collect()).unwrap().encode();
    let at = valid.windows(old.len()).position(|part| part == old).expect("the encoding contains the bytes");
    [&valid[..at], new, &valid[at + old.len()..]].concat()
}

fn get(peer: &Peer, name: &str, out: &Path, options: &[&str]) -> Output {
    let args = ["get", name, "-o"].map(OsStr::new).into_iter().chain([out.as_os_str()]);
    peer.run(args.chain(options.iter().map(OsStr::new)))
}

#[test]
fn collections_with_escaping_paths_are_refused() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let peer = world.running_peer("peer", &[&tracker]);
    let outside = world.path("outside");
    fs::create_dir_all(outside.join("in")).unwrap();
    let absolute = outside.join("escaped");
    let paths = [
        "",
        ".",
        "..",
        "../escaped",
        "../../escaped",
        "a/../../escaped",
        "./escaped",
        "a//escaped",
        "a/",
        "a\\..\\..\\escaped",
        "nul\0",
        "x.enjambre-part",
        "x.Enjambre-Part/y",
        absolute.to_str().unwrap(),
    ];
    let mut lists: Vec<_> =
        paths.iter().map(|path| encode_list(&[VALID], &text(VALID), &text(path))).collect();
    // A file that is also a directory, a duplicate, a wrong order, too large counts, and a too large size.
    lists.push(encode_list(&["ab", "ac/d"], &text("ab"), &text("ac")));
    lists.push(encode_list(&["ab", "ac"], &text("ab"), &text("ac")));
    lists.push(encode_list(&["ab", "ac"], &text("ab"), &text("ad")));
    let counted = |head: &[u8]| [&text("enjambre collection 1"), head].concat();
    lists.push(encode_list(&[VALID], &counted(b"\x81"), &counted(b"\x9a\x00\x0f\x42\x40")));
    lists.push(encode_list(&[VALID], &counted(b"\x81"), &counted(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff")));
    let size = |head: &[u8]| [&text(VALID), head].concat();
    lists.push(encode_list(&[VALID], &size(b"\x04"), &size(b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff")));
    for (number, list) in lists.into_iter().enumerate() {
        let name = format!("evil-{number}");
        let _provider = FakeProvider::collection(tracker.endpoint(), &name, list).unwrap();
        let out = outside.join("in").join(&name);
        let output = get(&peer, &name, &out, &["--force"]);
        assert_ne!(output.status, Some(0), "{name}: {}", output.stdout);
        assert_eq!(output.stderr.trim().lines().count(), 1, "{name}: {}", output.stderr);
        assert!(output.stderr.contains("collection"), "{name}: {}", output.stderr);
    }
    assert_eq!(read_tree(&outside).into_keys().collect::<Vec<_>>(), Vec::<String>::new());
    assert!(!world.path("escaped").exists());
}

#[test]
fn links_in_output_directory_are_not_followed() {
    let world = World::default();
    let (folder, outside) = (world.path("folder"), world.path("outside"));
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    fs::write(folder.join("sub/other"), "more content").unwrap();
    let tracker = world.tracker("tracker");
    let publisher = world.running_peer("publisher", &[&tracker]);
    publisher.publish(&folder, &[]);
    // Links in the place of a directory, of a file, of a partial file and of a nested file.
    let links = [("sub", "."), ("file", "new"), ("file.enjambre-part", "new"), ("sub/other", "new")];
    for (number, (link, to)) in links.into_iter().enumerate() {
        let peer = world.peer(&format!("peer-{number}"), &[&tracker]);
        for options in [&[][..], &["--force"]] {
            let out = world.path(format!("out-{number}-{}", options.len()));
            let link = out.join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(outside.join(to), &link).unwrap();
            // The link may be replaced or cause an error.
            let _output = get(&peer, "folder", &out, options);
            let escaped = read_tree(&outside);
            assert!(escaped.is_empty(), "{} with {options:?}: {escaped:?}", link.display());
        }
    }
}
