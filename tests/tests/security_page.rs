//! What `docs/SECURITY.md` says is tested, is.

#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, into);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            into.push(entry);
        }
    }
}

/// Where the test of a name lies: `file.rs: name` in `tests/tests`, `module::tests::name` in a file of `core/src` whose
/// path has the modules in it, and a name alone in the kit for transports.
fn is_there(named: &str, root: &Path, core: &[PathBuf]) -> bool {
    let has = |path: &Path, name: &str| {
        fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("fn {name}(")))
    };
    if let Some((file, name)) = named.split_once(": ") {
        return has(&root.join("tests/tests").join(file), name);
    }
    let Some((modules, name)) = named.rsplit_once("::") else {
        return has(&root.join("core/src/transport/conformance/lifecycle.rs"), named);
    };
    // Tests lie in the file of their module or in one beside it.
    let modules = modules.strip_suffix("::tests").unwrap_or(modules).replace("::", "/");
    core.iter().any(|path| path.to_str().unwrap().contains(&format!("core/src/{modules}")) && has(path, name))
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/SECURITY.md")).unwrap();
    let (_, table) = page.split_once("## Threat, defence, test").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let mut core = Vec::new();
    sources(&root.join("core/src"), &mut core);
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 15, "the table is there");
    for row in rows {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test is named: {row}");
        for name in named {
            assert!(is_there(name, root, &core), "{name} is not there: {row}");
        }
    }
}
