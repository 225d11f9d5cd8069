//! The benchmark program transfers a small file with the baseline program and Enjambre and writes its tables.

use std::fs;
use std::process::Command;

use serde_json::Value;

#[test]
fn small_file_is_measured_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (json, page) = (folder.path().join("figures.json"), folder.path().join("page.md"));
    let output = Command::new(env!("CARGO_BIN_EXE_enjambre-bench"))
        .args(["--case", "single,publish", "--tools", "baseline,enjambre", "--rounds", "1", "--size", "8MiB"])
        .arg("--dir")
        .arg(folder.path())
        .arg("--json")
        .arg(&json)
        .arg("--markdown")
        .arg(&page)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");

    let figures: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    for case in figures["cases"].as_array().unwrap() {
        for contender in case["contenders"].as_array().unwrap() {
            assert!(contender["medians"]["seconds"].as_f64() > Some(0.0), "{contender}\n{stderr}");
        }
    }
    let single = &figures["cases"][0];
    assert_eq!(single["case"], "single");
    assert!(single["contenders"].as_array().unwrap().len() >= 3, "{single}");
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("| baseline ") && page.contains("| enjambre tcp "), "{page}");
    let left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 2, "nothing else is left: {left:?}");
}
