//! Puts a corpus into a folder as libFuzzer wants it, and takes one from there: `corpus unpack NAME FOLDER`, `corpus pack NAME
//! FOLDER`. What was found before stays at the front of a file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use enjambre_fuzz::{corpus, corpus_file};

/// The largest file that is written.
const MOST: usize = 24 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["unpack", name, folder] => unpack(name, folder.as_ref()),
        ["pack", name, folder] => pack(name, folder.as_ref()),
        _ => Err(std::io::Error::other("usage: corpus unpack|pack NAME FOLDER")),
    };
    if let Err(error) = done {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

fn unpack(name: &str, folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for (number, input) in corpus(name).into_iter().enumerate() {
        fs::write(folder.join(format!("{name}-{number}")), input)?;
    }
    Ok(())
}

/// The shortest inputs of the folder, behind what the file has up to its last line that says what was found.
fn pack(name: &str, folder: &Path) -> std::io::Result<()> {
    let path = corpus_file(name);
    let old = fs::read_to_string(&path).unwrap_or_default();
    let mut lines: Vec<&str> = old.lines().collect();
    // Behind such a line is the input that it is about.
    lines.truncate(lines.iter().rposition(|line| line.starts_with('#')).map_or(0, |at| at + 2));
    let mut inputs = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let input = hex::encode(fs::read(entry?.path())?);
        if !lines.contains(&input.as_str()) {
            inputs.insert((input.len(), input));
        }
    }
    let mut text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    for (_, input) in &inputs {
        if text.len() + input.len() >= MOST {
            break;
        }
        text.extend([input, "\n"]);
    }
    fs::write(path, text)
}
