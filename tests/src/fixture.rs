//! Data directories of earlier releases, stored as text without their keys; see `tests/fixtures/README.md`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Seek;
use std::io::{SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Creates `folder` and writes the files of a fixture and a key into it.
///
/// # Panics
/// Panics if the fixture does not exist or is malformed, or if the directory cannot be written.
pub fn unpack(name: &str, folder: &Path) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut file = None;
    for (number, line) in (1..).zip(text.lines()) {
        write_line(line, folder, &mut file)
            .unwrap_or_else(|| panic!("{}:{number}: invalid fixture line", path.display()));
    }
    let key = folder.join("key");
    fs::write(&key, [7; 32]).unwrap_or_else(|error| panic!("{}: {error}", key.display()));
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("the key can be made private");
}

fn write_line(line: &str, folder: &Path, file: &mut Option<File>) -> Option<()> {
    let mut fields = line.split(' ');
    let (first, second) = (fields.next()?, fields.next()?);
    if first == "file" {
        let path = folder.join(second);
        DirBuilder::new().recursive(true).mode(0o700).create(path.parent()?).ok()?;
        let created = File::create(path).ok()?;
        created.set_len(fields.next()?.parse().ok()?).ok()?;
        *file = Some(created);
        return Some(());
    }
    let digits = second.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> =
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    let file = file.as_mut()?;
    file.seek(SeekFrom::Start(first.parse().ok()?)).ok()?;
    file.write_all(&bytes?).ok()
}
