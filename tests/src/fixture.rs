//! Data folders that earlier programs left, kept as text: see `tests/fixtures/README.md`.

use std::fs::{self, File};
use std::io::Seek;
use std::io::{SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Makes the folder of a fixture anew, in `folder`, which is made.
///
/// # Panics
/// If there is no such fixture, it is not well formed, or the folder cannot be written.
pub fn unpack(name: &str, folder: &Path) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut file = None;
    for (number, line) in (1..).zip(text.lines()) {
        write_line(line, folder, &mut file)
            .unwrap_or_else(|| panic!("{}:{number} is not a line of a fixture", path.display()));
    }
}

fn write_line(line: &str, folder: &Path, file: &mut Option<File>) -> Option<()> {
    let mut words = line.split(' ');
    let (first, second) = (words.next()?, words.next()?);
    if first == "file" {
        let path = folder.join(second);
        fs::create_dir_all(path.parent()?).ok()?;
        let made = File::create(path).ok()?;
        made.set_len(words.next()?.parse().ok()?).ok()?;
        *file = Some(made);
        return Some(());
    }
    let digits = second.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> =
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    let file = file.as_mut()?;
    file.seek(SeekFrom::Start(first.parse().ok()?)).ok()?;
    file.write_all(&bytes?).ok()
}
