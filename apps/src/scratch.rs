//! A place for a storage that is tried out and removed afterwards, apart from the data of the node.
//!
//! An embedded backend gets a fresh folder beside its configured database, so that it is tried on the same disk; a
//! networked one keeps apart by the name, and says in [`crate::registry::Registry::remove_scratch_with`] how to remove
//! what it made.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::failure::Failure;

/// What the name of every scratch begins with.
const PREFIX: &str = "enjambre_scratch_";

/// A scratch. Clones mean the same one.
#[derive(Debug, Clone)]
pub struct Scratch {
    name: String,
    home: PathBuf,
    folders: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl PartialEq for Scratch {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.home == other.home
    }
}

impl Eq for Scratch {}

impl Scratch {
    /// A scratch with a name of its own; `home` is the data folder of the node.
    pub fn new(home: &Path) -> Self {
        Self::named(home, format!("{PREFIX}{:012x}", rand::random::<u64>() >> 16))
    }

    /// The scratch of another process with this name; none if that is no name of a scratch.
    pub fn of(home: &Path, name: &str) -> Option<Self> {
        let random = name.strip_prefix(PREFIX)?;
        let fits = random.len() == 12 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
        fits.then(|| Self::named(home, name.to_owned()))
    }

    fn named(home: &Path, name: String) -> Self {
        let folders = BTreeSet::from([home.join(&name)]);
        Self { name, home: home.to_owned(), folders: Arc::new(Mutex::new(folders)) }
    }

    /// The name, like no other: 29 lower-case letters, digits and underscores.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The data folder of the node, where files that are only read may lie, such as a password or a certificate.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The folder for relative paths.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join(&self.name)
    }

    /// Where a database lies whose path outside of a scratch is this one: in a folder beside it.
    pub(crate) fn database(&self, path: &Path) -> PathBuf {
        let folder = path.parent().unwrap_or(&self.home).join(&self.name);
        let database = folder.join(path.file_name().unwrap_or("database".as_ref()));
        self.folders.lock().insert(folder);
        database
    }

    /// Makes the folder, which only its owner may read, and the data folder where that is missing. Blocks.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        let folder = self.data_dir();
        // So that nothing is left where nothing was.
        let missing = self.home.ancestors().take_while(|above| !above.exists()).map(Path::to_owned);
        let missing: Vec<PathBuf> = missing.filter(|above| !above.as_os_str().is_empty()).collect();
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
            Failure::from(error).context(format!("the scratch folder {} cannot be made", folder.display()))
        })?;
        self.folders.lock().extend(missing.into_iter().chain([folder]));
        Ok(())
    }

    /// Removes the folders with everything in them; of those above only what is empty. What cannot be removed is tried
    /// again by the next call. Blocks.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        // The innermost first.
        let folders = std::mem::take(&mut *self.folders.lock());
        for folder in folders.iter().rev() {
            let own = folder.file_name().is_some_and(|name| *name == *self.name);
            let removed = if own { std::fs::remove_dir_all(folder) } else { std::fs::remove_dir(folder) };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    self.folders.lock().insert(folder.clone());
                    if own {
                        let what = format!("the scratch folder {} cannot be removed", folder.display());
                        outcome = Err(Failure::from(error).context(what));
                    }
                }
                _ => {}
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_lie_beside_the_configured_ones_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("data/peer");
        let elsewhere = folder.path().join("disk");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("library.db"), "mine").unwrap();
        let scratch = Scratch::new(&home);
        scratch.create().unwrap();
        for path in [home.join("library.db"), elsewhere.join("library.db"), home.join("../other.db")] {
            let database = scratch.database(&path);
            assert_eq!(database.file_name(), path.file_name());
            assert!(database.starts_with(path.parent().unwrap()) && database != path);
            std::fs::create_dir_all(database.parent().unwrap()).unwrap();
            std::fs::write(&database, "scratch").unwrap();
        }
        scratch.remove().unwrap();
        assert!(!folder.path().join("data").exists());
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(elsewhere.join("library.db")).unwrap(), "mine");
    }

    #[test]
    fn a_data_folder_that_is_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("data");
        let scratch = Scratch::new(&home);
        scratch.create().unwrap();
        std::fs::write(home.join("lock"), "").unwrap();
        scratch.remove().unwrap();
        assert!(home.join("lock").exists() && !scratch.data_dir().exists());
    }

    #[test]
    fn what_cannot_be_removed_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("data");
        let scratch = Scratch::new(&home);
        scratch.create().unwrap();
        // A file where a folder should be is in the way even of root.
        std::fs::remove_dir(scratch.data_dir()).unwrap();
        std::fs::write(scratch.data_dir(), "in the way").unwrap();
        scratch.remove().unwrap_err();
        std::fs::remove_file(scratch.data_dir()).unwrap();
        std::fs::create_dir(scratch.data_dir()).unwrap();
        std::fs::write(scratch.data_dir().join("library.db"), "scratch").unwrap();
        scratch.remove().unwrap();
        assert!(!home.exists());
    }

    #[test]
    fn another_process_finds_the_same_by_the_name_and_by_no_other() {
        let scratch = Scratch::new(Path::new("/data"));
        assert_eq!(Scratch::of(Path::new("/data"), scratch.name()), Some(scratch));
        for name in ["", "enjambre_scratch_", "enjambre_scratch_0123456789/.", "enjambre_catalogue"] {
            assert_eq!(Scratch::of(Path::new("/data"), name), None);
        }
    }
}
