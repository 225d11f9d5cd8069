//! Temporary files with the content that clients send, because its size and hash must be known before it is published.

use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use enjambre_control::{Event, Events, Failure, Input, ResultContext, next_part};
use enjambre_core::model::manifest_builder::ManifestBuilder;
use enjambre_core::storage::database_file::{check_free_space, create_private_dir};
use enjambre_core::{Manifest, Name, PieceLayout};
use tempfile::{Builder, NamedTempFile};

/// The directory of the files, in the data directory.
const FOLDER: &str = "spool";
/// The beginning of the names of the files.
const PREFIX: &str = "input-";
/// Free space that remains for the databases, in bytes.
const RESERVE: u64 = 64 << 20;

/// Writes the content to a file and hashes it. The file is deleted when the value is dropped, or at the next start after a
/// crash. Before it reads the content, it checks the free space for its `size`, if that is known, and sends an event. The
/// file will be copied to `copy_dir`.
pub(crate) async fn write(
    data_dir: &Path,
    copy_dir: Option<&Path>,
    name: &Name,
    size: Option<u64>,
    mut content: Input,
    events: &Events,
) -> Result<(NamedTempFile, Manifest), Failure> {
    let action = format!("cannot write the content to {}", data_dir.display());
    let (path, copy_path) = (data_dir.to_owned(), copy_dir.map(Path::to_owned));
    let create = move || {
        let size = PieceLayout::new(size.unwrap_or_default())?.size();
        check_space(&path, copy_path.as_deref(), size, size)?;
        let folder = path.join(FOLDER);
        create_private_dir(&folder)?;
        Ok(Builder::new().prefix(PREFIX).tempfile_in(folder)?)
    };
    let spool = crate::blocking(create).await.context(&action)?;
    let mut hashes = ManifestBuilder::new();
    let progress = |done| {
        events.progress(Event::Hashing { path: name.as_str().into(), done, total: size.unwrap_or_default() });
    };
    progress(0);
    loop {
        let part = next_part(&mut content).await?;
        if part.is_empty() {
            return Ok((spool, hashes.finish()));
        }
        let (path, copy_path) = (data_dir.to_owned(), copy_dir.map(Path::to_owned));
        let file = spool.as_file().try_clone();
        let append = move || {
            let added = part.len() as u64;
            check_space(&path, copy_path.as_deref(), added, hashes.size() + added)?;
            hashes.update(&part)?;
            file?.write_all(&part)?;
            Ok(hashes)
        };
        hashes = crate::blocking(append).await.context(&action)?;
        progress(hashes.size());
    }
}

/// Checks the free space for `added` bytes in the data directory and a copy of `size` bytes.
fn check_space(data_dir: &Path, copy_dir: Option<&Path>, added: u64, size: u64) -> Result<(), Failure> {
    let mut needed = RESERVE + added;
    if let Some(copy_dir) = copy_dir {
        match is_same_device(data_dir, copy_dir)? {
            true => needed += size,
            false => check_free_space(copy_dir, RESERVE + size)?,
        }
    }
    Ok(check_free_space(data_dir, needed)?)
}

/// Whether two directories are on the same device.
pub(crate) fn is_same_device(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(one.metadata()?.dev() == other.metadata()?.dev())
}

/// Deletes the files that killed processes left in a data directory. The caller holds its lock. Blocks.
pub(crate) fn clean(data_dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(data_dir.join(FOLDER)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let (entry, prefix) = (entry?, PREFIX.as_bytes());
        if entry.file_name().as_bytes().starts_with(prefix) && entry.file_type()?.is_file() {
            let path = entry.path();
            std::fs::remove_file(&path)?;
            tracing::info!(path = %path.display(), "deleted the content of an interrupted publication");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Error;
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn content_is_deleted_with_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let (name, (events, _receiver)) = ("a".parse().unwrap(), Events::channel());
        let (sender, content) = mpsc::channel(3);
        sender.send(Ok(b"con".to_vec())).await.unwrap();
        sender.send(Ok(b"tent".to_vec())).await.unwrap();
        sender.send(Ok(Vec::new())).await.unwrap();
        let (spool, manifest) = write(folder.path(), None, &name, Some(7), content, &events).await.unwrap();
        assert_eq!(std::fs::read(spool.path()).unwrap(), b"content");
        assert_eq!(*manifest.id().as_bytes(), *blake3::hash(b"content").as_bytes());
        drop(spool);
        let (sender, content) = mpsc::channel(2);
        sender.send(Ok(b"con".to_vec())).await.unwrap();
        sender.send(Err(Error::other("the pipe broke"))).await.unwrap();
        let failure = write(folder.path(), None, &name, None, content, &events).await.unwrap_err();
        assert!(failure.message.contains("the pipe broke"), "{failure}");
        let (sender, content) = mpsc::channel(2);
        sender.send(Ok(b"con".to_vec())).await.unwrap();
        drop(sender);
        let failure = write(folder.path(), None, &name, None, content, &events).await.unwrap_err();
        assert!(failure.message.contains("incomplete"), "{failure}");
        let (_sender, content) = mpsc::channel(1);
        let is_empty = || std::fs::read_dir(folder.path().join(FOLDER)).unwrap().next().is_none();
        let created = async {
            while is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            written = write(folder.path(), None, &name, None, content, &events) => panic!("not the end: {written:?}"),
            () = created => {}
        }
        let deleted = async {
            while !is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), deleted).await.expect("the file is deleted");
    }
}
