//! A running copy: its mark in the target, content, records, and the final comparison.

use std::path::Path;
use std::sync::Arc;

use enjambre_control::{Failure, ResultContext};
use enjambre_core::{Key, Space, Storage, StorageError};
use enjambre_swarm::library::content::{self, ContentStore};
use enjambre_swarm::library::content_copy::{self, ContentCopy, PieceTotals};
use enjambre_swarm::library::error::LibraryError;
use enjambre_swarm::record_copy::mark::{Cursor, Mark, Marking, VERSION};
use enjambre_swarm::record_copy::{self, Copy, Count, Extent};
use enjambre_swarm::{catalogue, library};
use serde_bytes::ByteBuf;
use serde_json::json;

use super::errors::{content_failed, differs, same_database, target_failed, write_failed};
use super::progress::CopyProgress;
use crate::cli::output::size;
use crate::cli::storage::databases::{Database, DatabaseKind, Databases};
use crate::display;

/// Bytes of content between two updates of the mark.
const CHECKPOINT_BYTES: u64 = 16 << 20;

pub(super) struct Copier<'a> {
    source: &'a Databases,
    target: &'a Databases,
    /// The stored mark of the target.
    marking: Marking<'a>,
    /// The next mark of the target.
    mark: Mark,
    /// The extent of each space of the source at the start.
    before: Vec<Extent>,
    progress: &'a mut CopyProgress,
}

pub(super) struct CopySummary {
    /// By database name and space.
    records: Vec<(&'static str, Space, Count)>,
    content: PieceTotals,
}

impl CopySummary {
    pub(super) fn has_authority(&self) -> bool {
        self.records
            .iter()
            .any(|(_, space, count)| *space == catalogue::layout::AUTHORITY && count.entries > 0)
    }

    pub(super) fn report(&self, progress: &mut CopyProgress, verify: bool) {
        let sum = |records: &[(&str, Space, Count)]| -> (u64, u64) {
            records.iter().fold((0, 0), |sum, (.., count)| (sum.0 + count.entries, sum.1 + count.bytes))
        };
        for database in self.records.chunk_by(|(one, ..), (other, ..)| one == other) {
            let (entries, bytes) = sum(database);
            progress.line(&format!(
                "{}: {}, {}",
                database[0].0,
                display::count(entries, "entry"),
                size(bytes)
            ));
        }
        let (entries, bytes) = sum(&self.records);
        let PieceTotals { count, bytes: content } = self.content;
        if count > 0 {
            progress.line(&format!("content: {}, {}", display::count(count, "piece"), size(content)));
        }
        let check = if verify { "compared" } else { "counted" };
        progress.line(&format!("all data copied and {check}; the source is unchanged"));
        if progress.json {
            progress.stdout.json(&json!({
                "event": "done", "entries": entries, "entry_bytes": bytes, "pieces": count,
                "piece_bytes": content, "verified": verify,
            }));
        }
    }
}

impl<'a> Copier<'a> {
    /// Returns the source and the target of each database of records.
    fn pairs(&self) -> Result<Vec<(&'a Database, &'a Database)>, Failure> {
        let records = self.source.all.iter().filter(|database| database.kind != DatabaseKind::Content);
        let pair = |source: &'a Database| match self.target.find(source.kind) {
            Some(target) => Ok((source, target)),
            None => Err(Failure::usage(format!(
                "the source has a {}, but tracker.store.enabled is false in the configuration of the target",
                source.name
            ))),
        };
        records.map(pair).collect()
    }

    /// Returns the content stores of source and target, or `None` if both use the same files.
    fn stores(&self) -> Option<(ContentStore, ContentStore)> {
        let (from, to) = (self.source.content()?, self.target.content()?);
        match (&from, &to) {
            (ContentStore::Files(one), ContentStore::Files(other)) if one == other => None,
            (ContentStore::Files(one), ContentStore::Files(other))
                if one.canonicalize().is_ok_and(|one| is_same_folder(&one, other)) =>
            {
                None
            }
            _ => Some((from, to)),
        }
    }

    /// Starts or resumes a copy. Checks that the target is another database, and that it is empty or contains an incomplete
    /// copy from the same source, which `name` identifies. Marks the target, so that no node opens it.
    pub(super) async fn begin(
        source: &'a Databases,
        target: &'a Databases,
        name: &[u8],
        force: bool,
        progress: &'a mut CopyProgress,
    ) -> Result<Self, Failure> {
        let marking = Marking::read(&*target.main().storage).await.context("cannot read the target")?;
        let mut copier =
            Self { source, target, marking, mark: Mark::new(name), before: Vec::new(), progress };
        for (source, target) in &copier.pairs()? {
            let same = record_copy::is_same(&*target.storage, &*source.storage).await;
            if same.context(format!("cannot use the {} database of the target", target.name))? {
                return Err(same_database());
            }
        }
        let found = match copier.marking.mark() {
            // The target is emptied in any case.
            Ok(_) | Err(StorageError::Corrupt { .. }) if force => None,
            Ok(found) => found,
            Err(error @ StorageError::Corrupt { .. }) => {
                let action =
                    "cannot read the copy mark of the target; use --force to delete all data in the target";
                return Err(Failure::from(error).context(action));
            }
            Err(error) => return Err(Failure::from(error).context("cannot read the target")),
        };
        match found {
            Some(Mark { v, .. }) if v != VERSION => {
                return Err(Failure::failed(format!(
                    "the target contains an incomplete copy of another program version (mark version {v}, supported version \
                     {VERSION}); complete it with that program, or use --force to delete all data in the target"
                )));
            }
            Some(mark) if mark.source == copier.mark.source => copier.mark = mark,
            Some(_) => {
                let text = "the target contains an incomplete copy from another source; complete that copy, or use --force to \
                            delete all data in the target";
                return Err(Failure::failed(text));
            }
            None => {
                copier.mark.emptying = !copier.is_target_empty().await?;
                if copier.mark.emptying && !force {
                    let text = "the target is not empty; choose another one, or use --force to delete all data in it";
                    return Err(Failure::failed(text));
                }
            }
        }
        copier.save().await?;
        copier.progress.resumable = true;
        if copier.mark.emptying {
            copier.empty_target().await?;
        }
        Ok(copier)
    }

    async fn save(&mut self) -> Result<(), Failure> {
        let saved = self.marking.write(&self.mark).await;
        saved.map_err(|error| write_failed("cannot write to the target", &error))
    }

    /// Deletes the previous data of the target. If interrupted, the resumed copy continues.
    async fn empty_target(&mut self) -> Result<(), Failure> {
        self.progress.line("deleting the data in the target");
        let emptying = |error| write_failed("cannot delete the data in the target", &error);
        for database in &self.target.all {
            let (storage, spaces) = (&*database.storage, spaces_of(database.kind));
            record_copy::empty(storage, &spaces, self.marking_of(database)).await.map_err(emptying)?;
            storage.sync().await.map_err(emptying)?;
        }
        if let Some((_, to)) = self.stores() {
            let emptying = |error| target_failed("cannot delete the data in the target", &error);
            to.clear().await.map_err(emptying)?;
        }
        self.mark.emptying = false;
        self.save().await
    }

    /// Returns the marking, if this database of the target contains the mark.
    fn marking_of(&self, database: &Database) -> Option<&Marking<'a>> {
        (database.kind == self.target.main().kind).then_some(&self.marking)
    }

    async fn is_target_empty(&self) -> Result<bool, Failure> {
        for database in &self.target.all {
            let empty = record_copy::is_empty(&*database.storage, &spaces_of(database.kind)).await;
            if !empty.context("cannot read the target")? {
                return Ok(false);
            }
        }
        match self.stores() {
            None => Ok(true),
            Some((_, to)) => {
                to.is_empty().await.map_err(|error| target_failed("cannot read the target", &error))
            }
        }
    }

    pub(super) async fn copy(&mut self) -> Result<CopySummary, Failure> {
        self.before = self.extents().await?;
        let mut total: u64 = self.before.iter().map(|extent| extent.count.bytes).sum();
        if let (Some((from, _)), Some(index)) = (self.stores(), self.source.find(DatabaseKind::Index)) {
            let claimed = content_copy::claimed_pieces(&index.storage, &from).await;
            total += claimed.map_err(|error| content_failed("cannot read the source", &error))?.bytes;
        }
        self.progress.total = total;
        let content = self.copy_content().await?;
        let records = self.copy_records().await?;
        Ok(CopySummary { records, content })
    }

    /// Returns the extent of each space of records in the source.
    async fn extents(&self) -> Result<Vec<Extent>, Failure> {
        let mut extents = Vec::new();
        for (source, _) in self.pairs()? {
            for space in source.spaces() {
                let extent = Extent::of(&*source.storage, *space).await;
                extents.push(extent.context("cannot read the source")?);
            }
        }
        Ok(extents)
    }

    /// Copies the content. It precedes the records, which refer to it.
    async fn copy_content(&mut self) -> Result<PieceTotals, Failure> {
        let (Some((from, to)), Some(index)) = (self.stores(), self.source.find(DatabaseKind::Index)) else {
            return Ok(PieceTotals::default());
        };
        let index = index.storage.clone();
        let failing = |error: LibraryError| content_failed("cannot copy the content", &error);
        let state = content_copy::claims_hash(&*index).await.context("cannot read the source")?;
        let target = |error: LibraryError| target_failed("cannot copy the content", &error);
        let found = content_copy::read_marker(&to).await.map_err(target)?;
        let is_current =
            |cursor: &Cursor| cursor.of[..] == state && Some(&cursor.stamp[..]) == found.as_deref();
        let cursor = self.mark.content.take().filter(is_current);
        let stamp = match &cursor {
            Some(cursor) => cursor.stamp.clone(),
            None => {
                // The content of an earlier run is unknown. The mark must not refer to it when it is deleted.
                self.save().await?;
                to.clear().await.map_err(target)?;
                ByteBuf::from(content_copy::renew_marker(&to).await.map_err(target)?)
            }
        };
        let mut done = PieceTotals::default();
        if let Some(Cursor { pieces, bytes, .. }) = &cursor {
            done = PieceTotals { count: *pieces, bytes: *bytes };
        }
        let after = cursor.as_ref().map(|cursor| &cursor.after[..]);
        let mut copy = ContentCopy::new(index, from, to, after).await.map_err(failing)?;
        self.progress.show("content", done.bytes);
        let mut unsynced = 0;
        loop {
            let step = copy.step().await.map_err(failing)?;
            if let Some(step) = step {
                done.count += step.count;
                done.bytes += step.bytes;
                unsynced += step.bytes;
                self.progress.show("content", done.bytes);
            }
            if unsynced >= CHECKPOINT_BYTES || step.is_none() {
                unsynced = 0;
                let Some(after) = copy.sync().await.map_err(failing)? else { break };
                let PieceTotals { count: pieces, bytes } = done;
                let (of, stamp, after) = (ByteBuf::from(state), stamp.clone(), ByteBuf::from(after));
                self.mark.content = Some(Cursor { of, stamp, after, pieces, bytes });
                self.save().await?;
            }
            if step.is_none() {
                break;
            }
        }
        self.progress.completed += done.bytes;
        Ok(done)
    }

    async fn copy_records(&mut self) -> Result<Vec<(&'static str, Space, Count)>, Failure> {
        // Fails if another copy was started meanwhile, even if there is nothing to write.
        self.save().await?;
        let store = self.target.content();
        let change = change_to(store.as_ref());
        let mut copied = Vec::new();
        for (source, target) in self.pairs()? {
            let failing = |error| write_failed(format!("cannot copy the {} database", source.name), &error);
            let (from, to) = (&*source.storage, &*target.storage);
            let marked = self.marking_of(target).is_some();
            for space in source.spaces() {
                let marking = marked.then_some(&self.marking);
                let copy = Copy { from, to, space: *space, change: &change, marking };
                let progress = &mut *self.progress;
                let count =
                    copy.run(|count| progress.show(source.name, count.bytes)).await.map_err(failing)?;
                progress.completed += count.bytes;
                copied.push((source.name, *space, count));
            }
            target.storage.sync().await.map_err(failing)?;
        }
        Ok(copied)
    }

    /// Compares source and target: number and size of the entries, or all data if `verify` is set. Fails if the source was
    /// modified during the copy.
    pub(super) async fn compare(&mut self, copied: &CopySummary, verify: bool) -> Result<(), Failure> {
        let compared = self.compare_copied(copied, verify).await;
        if self.extents().await? != self.before {
            return Err(Failure::failed(
                "the source was modified during the copy, so another process uses that database; stop all trackers and peers \
                 that use it, then run the copy again",
            ));
        }
        compared
    }

    async fn compare_copied(&mut self, copied: &CopySummary, verify: bool) -> Result<(), Failure> {
        let store = self.target.content();
        let change = change_to(store.as_ref());
        for (source, target) in self.pairs()? {
            let action = format!("cannot compare the {} database", source.name);
            let (from, to) = (&*source.storage, &*target.storage);
            for space in source.spaces() {
                let copy = Copy { from, to, space: *space, change: &change, marking: None };
                let difference = if verify {
                    copy.first_difference().await.context(&action)?.map(|key| format!("entry {key}"))
                } else {
                    let found = record_copy::count(to, *space).await.context(&action)?;
                    let expected =
                        copied.records.iter().find(|(name, of, _)| *name == source.name && of == space);
                    let differs = expected.is_none_or(|(.., count)| *count != found);
                    differs.then(|| "the number of entries".to_owned())
                };
                if let Some(difference) = difference {
                    return Err(differs(&format!("{difference} of space {}", space.name())));
                }
            }
        }
        let Some(index) = self.target.find(DatabaseKind::Index).map(|index| index.storage.clone()) else {
            return Ok(());
        };
        let Some((_, to)) = self.stores() else {
            return if verify { self.verify_shared_content(index).await } else { Ok(()) };
        };
        let same = match verify {
            true => self
                .verify_content(&index, to, copied.content.bytes)
                .await
                .map(|found| found == copied.content),
            false => content_copy::has_copied_sizes(&index, &to, copied.content).await,
        };
        let compared = match same {
            Ok(true) => return Ok(()),
            Ok(false) => differs("the content"),
            Err(error) => target_failed("cannot compare the content of the target", &error),
        };
        // The next run copies the content from the start.
        self.mark.content = None;
        self.save().await?;
        Err(compared)
    }

    /// Removes the mark, so that nodes can open the target.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        let action = "cannot complete the copy";
        if let Some((_, to)) = self.stores() {
            content_copy::remove_marker(&to).await.map_err(|error| target_failed(action, &error))?;
        }
        self.progress.resumable = false;
        self.marking.remove().await.map_err(|error| write_failed(action, &error))
    }

    /// Verifies content that source and target share, against the index of the target.
    async fn verify_shared_content(&mut self, index: Arc<dyn Storage>) -> Result<(), Failure> {
        let (Some(_), Some(store)) = (self.source.content(), self.target.content()) else { return Ok(()) };
        let failing = |error: LibraryError| content_failed("the shared content is damaged", &error);
        let claimed = content_copy::claimed_pieces(&index, &store).await.map_err(failing)?;
        self.verify_content(&index, store, claimed.bytes).await.map_err(failing)?;
        Ok(())
    }

    /// Reads and verifies all content of a store.
    async fn verify_content(
        &mut self,
        index: &Arc<dyn Storage>,
        store: ContentStore,
        total: u64,
    ) -> Result<PieceTotals, LibraryError> {
        let mut proof = ContentCopy::verification(Arc::clone(index), store);
        let mut found = PieceTotals::default();
        (self.progress.completed, self.progress.total) = (0, total);
        while let Some(step) = proof.step().await? {
            found.count += step.count;
            found.bytes += step.bytes;
            self.progress.show("content comparison", found.bytes);
        }
        Ok(found)
    }
}

/// Returns whether `other` is the canonical path `one`.
pub(super) fn is_same_folder(one: &Path, other: &Path) -> bool {
    other.canonicalize().is_ok_and(|other| other == one)
}

/// Returns the function that adapts records to the content store of the target.
fn change_to(
    store: Option<&ContentStore>,
) -> impl Fn(Space, &Key, bytes::Bytes) -> Result<bytes::Bytes, StorageError> + Send + Sync {
    move |space, key, value| match store {
        Some(store) => content_copy::relocate_record(store, space, key, value),
        None => Ok(value),
    }
}

/// Returns all spaces that a database can contain, whichever kind of node used it before.
fn spaces_of(kind: DatabaseKind) -> Vec<Space> {
    match kind {
        DatabaseKind::Catalogue | DatabaseKind::Index => {
            [catalogue::layout::SPACES, library::SPACES].concat()
        }
        DatabaseKind::Content => content::SPACES.to_vec(),
    }
}

#[cfg(test)]
mod tests;
