//! Owners and permissions of files, and private files, that other users must not control.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use enjambre_core::storage::database_file::{create_private_file, sync_dir};

/// Returns the user id of this process.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns whether users other than the owner can write the file or directory.
///
/// A group with the number of the owner counts as the owner: where the umask is 002, every user has a group alone.
pub(crate) fn others_can_write(found: &Metadata) -> bool {
    let group = found.mode() & 0o020 != 0 && found.gid() != found.uid();
    group || found.mode() & 0o002 != 0
}

/// Returns the name of a user, or its number if this machine has no name for it.
pub(crate) fn user_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut names = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    names.next().unwrap_or_else(|| format!("number {uid}"))
}

/// Writes a file of the data directory that only this user can read. A crash leaves the old content or the new one.
/// Blocks.
pub(crate) fn write_file(data_dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let draft = data_dir.join(format!("{name}.new"));
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Only a new file is certain not to be a link, and has the permissions.
    let mut file = create_private_file(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&draft, data_dir.join(name))?;
    sync_dir(&File::open(data_dir)?)
}
