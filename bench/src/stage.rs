//! The working directory, the transferred content and the comparison of received files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Result, ensure};
use enjambre_tests::content::{TreeFile, read_tree, write_file};
use tempfile::TempDir;

use crate::limit;
use crate::options::Options;
use crate::swarm_tracker::SwarmTracker;
use crate::torrent;

/// Something to send around.
#[derive(Debug)]
pub(crate) struct Content {
    /// The file or folder.
    pub(crate) path: PathBuf,
    /// Bytes in all.
    pub(crate) size: u64,
    /// The same as a torrent; nothing is there for a sparse file, which only Enjambre gets to see.
    pub(crate) torrent: PathBuf,
    /// What must arrive.
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    File(String),
    Folder(BTreeMap<String, TreeFile>),
}

impl Content {
    /// Its name, which it keeps on the way.
    pub(crate) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether it is a folder.
    pub(crate) fn is_folder(&self) -> bool {
        matches!(self.expected, Expected::Folder(_))
    }

    /// Fails unless the same is at `path`.
    pub(crate) fn compare(&self, path: &Path) -> Result<()> {
        match &self.expected {
            Expected::File(hash) => {
                let found = limit::hash(path)?;
                ensure!(found.to_hex().as_str() == hash, "{} differs from the original", path.display());
            }
            Expected::Folder(tree) => {
                ensure!(path.is_dir(), "there is no folder {}", path.display());
                ensure!(read_tree(path) == *tree, "{} differs from the original", path.display());
            }
        }
        Ok(())
    }
}

/// The directory of one run and the state that its contenders share.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The command line options.
    pub(crate) options: Options,
    /// Where those who speak BitTorrent find each other.
    pub(crate) swarm_tracker: SwarmTracker,
    folder: PathBuf,
    contents: RefCell<BTreeMap<String, Rc<Content>>>,
    kept: RefCell<Vec<TempDir>>,
}

impl Stage {
    /// Creates a stage in an existing directory.
    pub(crate) fn new(options: Options, folder: &Path) -> Result<Self> {
        let folder = folder.to_owned();
        let swarm_tracker = SwarmTracker::start()?;
        Ok(Self { options, swarm_tracker, folder, contents: RefCell::default(), kept: RefCell::default() })
    }

    /// An empty folder for one run, which goes with its guard.
    pub(crate) fn room(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("run-").tempdir_in(&self.folder)?)
    }

    /// Leaves the folder of a run with many files until the end. Where many were deleted within the last minutes, ext4 goes
    /// through all of them for each file that is made, and whoever comes next pays for it.
    pub(crate) fn keep(&self, room: TempDir) {
        self.kept.borrow_mut().push(room);
    }

    /// A file of random content: of this size, unless another was asked for on the command line.
    pub(crate) fn file(&self, size: u64) -> Result<Rc<Content>> {
        let size = self.options.size.map_or(size, |size| size.as_u64());
        self.with_torrent(&format!("file-{size}.bin"), |path| {
            let hash = write_file(path, size, size);
            Ok((size, Expected::File(hash)))
        })
    }

    /// A folder of so many files of so many bytes each.
    pub(crate) fn files(&self, count: u64, each: u64) -> Result<Rc<Content>> {
        self.with_torrent(&format!("files-{count}"), |path| {
            fs::create_dir(path)?;
            for number in 0..count {
                write_file(&path.join(format!("{number:05}.bin")), each, number);
            }
            Ok((count * each, Expected::Folder(read_tree(path))))
        })
    }

    /// A file without anything in it but its size.
    pub(crate) fn sparse_file(&self, size: u64) -> Result<Rc<Content>> {
        self.content("sparse.bin", |path| {
            fs::File::create(path)?.set_len(size)?;
            Ok((size, Expected::File(limit::hash(path)?.to_hex().to_string())))
        })
    }

    fn with_torrent(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<(u64, Expected)>,
    ) -> Result<Rc<Content>> {
        let content = self.content(name, make)?;
        if !content.torrent.exists() {
            torrent::write(&content.path, &self.swarm_tracker.url(), &content.torrent)?;
        }
        Ok(content)
    }

    fn content(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<(u64, Expected)>,
    ) -> Result<Rc<Content>> {
        if let Some(content) = self.contents.borrow().get(name) {
            return Ok(Rc::clone(content));
        }
        let path = self.folder.join(name);
        let (size, expected) = make(&path)?;
        // Pending writeback would slow down the first contender.
        rustix::fs::sync();
        let torrent = self.folder.join(format!("{name}.torrent"));
        let content = Rc::new(Content { path, size, torrent, expected });
        self.contents.borrow_mut().insert(name.to_owned(), Rc::clone(&content));
        Ok(content)
    }
}
