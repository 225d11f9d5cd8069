//! Owners and permissions of files that other users must not control.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

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
