//! File systems for tests: small ones that fill up, disk images that can be copied while they are mounted, one with
//! reflinks, and directories with several paths.
//!
//! Mounting requires root and the permission to mount, which most containers lack. Without it a test prints a message and
//! is skipped; with `CI=true` and root it fails, except for reflinks, which also require the program `mkfs.xfs`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::skip::print_skipped;

/// Mount options that delay the write-back of data without `fsync` for as long as possible.
const IMAGE_OPTIONS: &[&str] = &["-t", "ext4", "-o", "loop,commit=300"];

/// A mounted file system. Dropping it unmounts the file system.
#[derive(Debug)]
pub struct Mount {
    point: TempDir,
}

/// A file that occupies the free space of a file system. Dropping it removes the file.
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
    /// Mounts a file system in memory. Returns `None`, and prints that `test` is skipped, if it cannot be mounted.
    pub fn in_memory(test: &str, bytes: u64) -> Option<Self> {
        let options = format!("size={bytes},mode=0700");
        Self::try_new(test, &["-t", "tmpfs", "-o", &options, "tmpfs"])
    }

    /// Mounts the ext4 file system of an image file. Returns `None`, and prints that `test` is skipped, if it cannot be
    /// mounted.
    pub fn image(test: &str, image: &Path) -> Option<Self> {
        let image = image.display().to_string();
        Self::try_new(test, &[IMAGE_OPTIONS, &[&image]].concat())
    }

    /// Mounts a file system with reflinks, in a new image file of this size. Returns `None`, and prints that `test` is skipped,
    /// if it cannot be created and mounted.
    ///
    /// # Panics
    /// Panics if the image file cannot be created.
    pub fn with_reflinks(test: &str, image: &Path, bytes: u64) -> Option<Self> {
        create_image(image, bytes);
        let mut mkfs = Command::new("mkfs.xfs");
        match mkfs.args(["-q", "-m", "reflink=1"]).arg(image).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                print_skipped(test, "mkfs.xfs is not installed");
                return None;
            }
            created => check(&mkfs, created).map_err(|error| skip(test, &error)).ok()?,
        }
        Self::try_new(test, &["-t", "xfs", "-o", "loop", &image.display().to_string()])
    }

    /// Gives a directory a second path. Returns `None`, and prints that `test` is skipped, if it cannot be mounted.
    pub fn of_directory(test: &str, dir: &Path) -> Option<Self> {
        Self::try_new(test, &["--bind", &dir.display().to_string()])
    }

    /// Unmounts the file system and mounts another image at the same path. No process may use the file system.
    ///
    /// # Panics
    /// Panics if a mount command fails.
    pub fn replace(&mut self, image: &Path) {
        run(Command::new("umount").arg(self.path())).unwrap_or_else(|error| panic!("{error}"));
        run(Command::new("mount").args(IMAGE_OPTIONS).arg(image).arg(self.path()))
            .unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_new(test: &str, args: &[&str]) -> Option<Self> {
        let point = tempfile::Builder::new()
            .prefix("enj-mnt-")
            .tempdir()
            .expect("cannot create a temporary directory");
        match run(Command::new("mount").args(args).arg(point.path())) {
            Ok(()) => Some(Self { point }),
            Err(error) => {
                skip(test, &error);
                None
            }
        }
    }

    /// Returns the mount point.
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// Fills the file system until `free` bytes are free.
    ///
    /// # Panics
    /// Panics if fewer bytes are free.
    pub fn fill(&self, free: u64) -> Ballast {
        let path = self.path().join("ballast");
        let file = File::create(&path).expect("cannot create the ballast file");
        let stat = rustix::fs::statvfs(self.path()).expect("cannot read the free space");
        let available = stat.f_bavail * stat.f_frsize;
        let length = available.checked_sub(free).expect("too few bytes are free");
        // Written in full, because a sparse file does not occupy space.
        let block = vec![1; 1 << 20];
        let mut at = 0;
        while at < length {
            let len = (length - at).min(block.len() as u64);
            if file.write_all_at(&block[..len as usize], at).is_err() {
                // File system metadata occupies part of the free space.
                break;
            }
            at += len;
        }
        Ballast { path }
    }

    /// Writes all changes to the file system.
    ///
    /// # Panics
    /// Panics if that fails.
    pub fn sync(&self) {
        let dir = File::open(self.path()).expect("cannot open the mount point");
        rustix::fs::syncfs(dir).expect("cannot sync the file system");
    }

    /// Returns the number of free bytes.
    ///
    /// # Panics
    /// Panics if the file system is not mounted.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).expect("cannot read the free space");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazy, because a process that is exiting may still have open files.
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("{error}");
        }
    }
}

/// Creates an image file with an empty ext4 file system. Returns `false`, and prints that `test` is skipped, if
/// `mkfs.ext4` fails.
///
/// # Panics
/// Panics if the file cannot be created.
pub fn make_ext4(test: &str, image: &Path, bytes: u64) -> bool {
    create_image(image, bytes);
    // Without lazy initialization no kernel thread writes to the image later.
    let options = "lazy_itable_init=0,lazy_journal_init=0";
    let created = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", options]).arg(image));
    created.map_err(|error| skip(test, &error)).is_ok()
}

fn create_image(image: &Path, bytes: u64) {
    let file = File::create(image).expect("cannot create the image file");
    file.set_len(bytes).expect("cannot set the size of the image file");
}

/// Returns a command in a mount namespace of its own. It first runs the shell commands `mounts`, and then the program that
/// the caller appends, with its arguments. Returns `None`, and prints that `test` is skipped, if it cannot mount.
pub fn in_namespace(test: &str, mounts: &str) -> Option<Command> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]);
        command
    };
    match run(&mut unshare("mount -t tmpfs none /tmp")) {
        Ok(()) => Some(unshare(&format!("{mounts} && exec \"$0\" \"$@\""))),
        Err(error) => {
            skip(test, &error);
            None
        }
    }
}

/// Copies an image file without the holes, which are most of it.
///
/// # Panics
/// Panics if the file cannot be copied.
pub fn copy_image(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to])).unwrap_or_else(|error| panic!("{error}"));
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output();
    check(command, output)
}

fn check(command: &Command, output: std::io::Result<Output>) -> Result<(), String> {
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", message.trim_end())) }
}

fn skip(test: &str, reason: &str) {
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let root = rustix::process::geteuid().is_root();
    assert!(!(in_ci && root), "{test}: {reason}");
    print_skipped(test, &format!("cannot mount a file system, which requires root: {reason}"));
}
