//! Compares the code in `docs/WRITING-A-BACKEND.md` with the files of this crate, and of `examples/redis`.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;

/// Collects the code blocks that follow a line such as `**src/lib.rs**`. Blocks of the same file are joined with a blank
/// line.
fn files(guide: &str) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut lines = guide.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("**`").and_then(|rest| Some(rest.split_once("`**")?.0)) else {
            continue;
        };
        assert_eq!((lines.next(), lines.next()), (Some(""), Some("```rust")), "after {line}");
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let file = files.entry(name.to_owned()).or_default();
        let blank = if file.is_empty() { "" } else { "\n" };
        *file = format!("{file}{blank}{}\n", block.join("\n"));
    }
    files
}

#[test]
fn guide_shows_files_of_the_examples() {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide =
        read_to_string(crate_directory.join("../../docs/WRITING-A-BACKEND.md")).expect("read the guide");
    let shown = files(&guide);
    let expected = [
        "examples/redis/src/lib.rs",
        "examples/redis/src/main.rs",
        "examples/redis/src/remote.rs",
        "src/engine.rs",
        "src/lib.rs",
        "src/main.rs",
        "src/record.rs",
        "tests/conformance.rs",
        "tests/crash.rs",
    ];
    assert_eq!(shown.keys().collect::<Vec<_>>(), expected);
    for (name, text) in shown {
        let directory = if name.starts_with("examples/") {
            crate_directory.join("../..")
        } else {
            crate_directory.into()
        };
        let file = read_to_string(directory.join(&name)).expect("read a file of the crate");
        assert!(file == text, "{name} differs from the guide:\n{text}");
    }
}
