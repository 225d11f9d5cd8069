//! `docs/WRITING-A-BACKEND.md` shows every file of this crate, so whoever follows it writes what is tested here.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;

/// The blocks of code under `**src/lib.rs**` and the like; several of one file belong together, a blank line between.
fn files(guide: &str) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut lines = guide.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("**`").and_then(|rest| Some(rest.split_once("`**")?.0)) else {
            continue;
        };
        assert_eq!((lines.next(), lines.next()), (Some(""), Some("```rust")), "behind {line}");
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let file = files.entry(name.to_owned()).or_default();
        let blank = if file.is_empty() { "" } else { "\n" };
        *file = format!("{file}{blank}{}\n", block.join("\n"));
    }
    files
}

#[test]
fn the_guide_shows_this_crate() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide =
        read_to_string(crate_folder.join("../../docs/WRITING-A-BACKEND.md")).expect("the guide is there");
    let shown = files(&guide);
    let expected = [
        "src/engine.rs",
        "src/lib.rs",
        "src/main.rs",
        "src/record.rs",
        "tests/conformance.rs",
        "tests/crash.rs",
    ];
    assert_eq!(shown.keys().collect::<Vec<_>>(), expected);
    for (name, text) in shown {
        let file = read_to_string(crate_folder.join(&name)).expect("a file that the guide shows is there");
        assert!(file == text, "{name} is not what the guide shows:\n{text}");
    }
}
