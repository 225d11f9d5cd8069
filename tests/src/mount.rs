//! File systems of a test's own: small ones that fill up, and ones in a file that can be copied while they are in use.
//!
//! They are mounted, which takes root and a kernel that lets root do so; most containers do not. Where it cannot be done
//! the test says so and is left out, unless `CI=true` and root: there it fails.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What nobody asked to be synced stays in memory for as long as it can.
const IMAGE_OPTIONS: &[&str] = &["-t", "ext4", "-o", "loop,commit=300"];

/// A mounted file system, taken away when this is dropped.
#[derive(Debug)]
pub struct Mount {
    point: TempDir,
}

/// A file that takes what was left of a file system; removed when dropped.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Mount {
    /// A file system in memory. None where nothing can be mounted; then it was said that `test` is left out.
    pub fn in_memory(test: &str, bytes: u64) -> Option<Self> {
        let options = format!("size={bytes},mode=0700");
        Self::try_new(test, &["-t", "tmpfs", "-o", &options, "tmpfs"])
    }

    /// The ext4 file system in a file. None where nothing can be mounted; then it was said that `test` is left out.
    pub fn image(test: &str, image: &Path) -> Option<Self> {
        let image = image.display().to_string();
        Self::try_new(test, &[IMAGE_OPTIONS, &[&image]].concat())
    }

    /// Puts the file system in another file in its place. Nobody may use it.
    ///
    /// # Panics
    /// If that fails.
    pub fn replace(&mut self, image: &Path) {
        run(Command::new("umount").arg(self.path())).unwrap_or_else(|why| panic!("{why}"));
        run(Command::new("mount").args(IMAGE_OPTIONS).arg(image).arg(self.path()))
            .unwrap_or_else(|why| panic!("{why}"));
    }

    fn try_new(test: &str, args: &[&str]) -> Option<Self> {
        let point = tempfile::Builder::new().prefix("enj-mnt-").tempdir().expect("a temporary folder");
        match run(Command::new("mount").args(args).arg(point.path())) {
            Ok(()) => Some(Self { point }),
            Err(why) => {
                leave_out(test, &why);
                None
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// Takes all that is free there but this many bytes.
    ///
    /// # Panics
    /// If less is free.
    pub fn fill(&self, leave: u64) -> Ballast {
        let path = self.path().join("ballast");
        let file = File::create(&path).expect("it can be written");
        let stat = rustix::fs::statvfs(self.path()).expect("it is mounted");
        let free = stat.f_bavail * stat.f_frsize;
        let length = free.checked_sub(leave).expect("so much is free");
        // Really written: a file system counts only what it had to keep.
        let block = vec![1; 1 << 20];
        let mut at = 0;
        while at < length {
            let len = (length - at).min(block.len() as u64);
            if file.write_all_at(&block[..len as usize], at).is_err() {
                // Its own records take some of it.
                break;
            }
            at += len;
        }
        Ballast { path }
    }

    /// How many bytes are free.
    ///
    /// # Panics
    /// If it is not mounted.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).expect("it is mounted");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process that is about to go may still have a file open there.
        if let Err(why) = run(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("{why}");
        }
    }
}

/// Makes an empty ext4 file system in a file. False where there is no program for it; then it was said that `test` is
/// left out.
///
/// # Panics
/// If the file cannot be made.
pub fn make_ext4(test: &str, image: &Path, bytes: u64) -> bool {
    let file = File::create(image).expect("the folder can be written");
    file.set_len(bytes).expect("a file without content takes no room");
    // Everything is written at once, so that no thread of the kernel changes it later.
    let lazy = "lazy_itable_init=0,lazy_journal_init=0";
    let made = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", lazy]).arg(image));
    made.map_err(|why| leave_out(test, &why)).is_ok()
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", said.trim_end())) }
}

fn leave_out(test: &str, why: &str) {
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let root = rustix::process::geteuid().is_root();
    assert!(!(in_ci && root), "{test}: {why}");
    // Beside what the test harness captures: nobody sees what a test says that passes.
    let _ = writeln!(
        std::io::stderr().lock(),
        "\n***** {test} WAS LEFT OUT: no file system can be mounted here, which takes root ({why}) *****"
    );
}
