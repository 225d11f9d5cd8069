//! The tests that `docs/SECURITY.md` names exist.

use std::fs;
use std::path::Path;

use enjambre_tests::binary::workspace;

/// Appends the text of all Rust files and browser tests below a directory.
fn read_sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.ends_with("node_modules") {
            continue;
        }
        if entry.is_dir() {
            read_sources(&entry, text);
        } else if entry.extension().is_some_and(|extension| extension == "rs" || extension == "js") {
            text.push_str(&fs::read_to_string(entry).unwrap());
        }
    }
}

#[test]
fn security_page_names_existing_tests() {
    let mut sources = String::new();
    for directory in ["apps", "control", "core", "http", "swarm", "testkit", "transport", "tests"] {
        read_sources(&workspace().join(directory), &mut sources);
    }
    let page = fs::read_to_string(workspace().join("docs/SECURITY.md")).unwrap();
    let tables = page.lines().skip_while(|line| !line.starts_with("| threat |"));
    let rows: Vec<&str> =
        tables.filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).collect();
    assert!(rows.len() > 30, "the tables are missing");
    for row in rows {
        let tests = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        let mut names = tests.split('`').skip(1).step_by(2).peekable();
        assert!(tests.trim() == "test" || names.peek().is_some(), "no test is named: {row}");
        for name in names {
            let name = name.rsplit([':', ' ']).next().unwrap();
            // Cases of the transport are generic over the protocol; the last is a browser test.
            let definitions = [format!("fn {name}("), format!("fn {name}<"), format!("test('{name}', ")];
            let exists = definitions.iter().any(|definition| sources.contains(definition));
            assert!(exists, "{name} does not exist: {row}");
        }
    }
}
