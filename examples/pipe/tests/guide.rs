//! Compares the code in `docs/WRITING-A-TRANSPORT.md` with the files of this crate.

use std::fs::read_to_string;
use std::path::Path;

#[test]
fn guide_shows_files_of_this_crate() {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| read_to_string(crate_directory.join(name)).expect("read a file");
    let guide = read("../../docs/WRITING-A-TRANSPORT.md");
    for name in ["src/lib.rs", "src/main.rs", "tests/conformance.rs"] {
        let block = format!("**`{name}`**\n\n```rust\n{}```\n", read(name));
        assert!(guide.contains(&block), "{name} differs from the guide; the file is:\n{}", read(name));
    }
}
