//! A copy under way: what its target says meanwhile, content, records, and whether all of it came over.

use std::sync::Arc;

use enjambre_core::library::carry::{self, Carry, Pieces};
use enjambre_core::library::content::{self, ContentStore};
use enjambre_core::library::error::LibraryError;
use enjambre_core::library::stamp;
use enjambre_core::storage::copy::mark::{Cursor, Mark, Marking, VERSION};
use enjambre_core::storage::copy::{self, Copy, Count, Extent};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Key, Space};
use enjambre_core::storage::{Role, Storage};
use enjambre_core::{catalogue, library};
use serde_bytes::ByteBuf;
use serde_json::json;

use super::errors::{content_failed, differs, failed, same_database, target_failed, write_failed};
use super::is_same_folder;
use super::meter::Meter;
use crate::cli::output::size;
use crate::cli::storage::databases::{Database, Databases, Meaning};
use crate::failure::Failure;

/// After how many bytes of content it is noted how far the copy is.
const CHECKPOINT: u64 = 16 << 20;

/// A copy under way.
pub(super) struct Copying<'a> {
    source: &'a Databases,
    target: &'a Databases,
    /// What stands in the target.
    marking: Marking<'a>,
    /// What is to stand there next.
    mark: Mark,
    /// What was in each space of the source at the beginning.
    before: Vec<Extent>,
    meter: &'a mut Meter,
}

/// What was copied.
pub(super) struct Copied {
    /// By the name of the database and the space.
    records: Vec<(&'static str, Space, Count)>,
    content: Pieces,
}

impl Copied {
    pub(super) fn has_authority(&self) -> bool {
        self.records
            .iter()
            .any(|(_, space, count)| *space == catalogue::layout::AUTHORITY && count.entries > 0)
    }

    pub(super) fn tell(&self, meter: &mut Meter, verify: bool) {
        let (mut entries, mut bytes) = (0, 0);
        let mut names: Vec<&'static str> = self.records.iter().map(|(name, ..)| *name).collect();
        names.dedup();
        for name in names {
            let of_it = self.records.iter().filter(|(of, ..)| *of == name);
            let (some, their_bytes) =
                of_it.fold((0, 0), |sum, (.., count)| (sum.0 + count.entries, sum.1 + count.bytes));
            meter.line(&format!("{name}: {some} entries, {}", size(their_bytes)));
            (entries, bytes) = (entries + some, bytes + their_bytes);
        }
        let Pieces { count, bytes: content } = self.content;
        if count > 0 {
            meter.line(&format!("content: {count} pieces, {}", size(content)));
        }
        let how = if verify { "read back and compared" } else { "counted" };
        meter.line(&format!("everything was copied and {how}; the source is as it was"));
        if meter.json {
            meter.stdout.json(&json!({
                "event": "done", "entries": entries, "entry_bytes": bytes, "pieces": count,
                "piece_bytes": content, "verified": verify,
            }));
        }
    }
}

/// The database of a target in which the mark is.
fn main_of(target: &Databases) -> Result<&dyn Storage, Failure> {
    let first = target.all.first();
    first.map(|database| &*database.storage).ok_or_else(|| Failure::failed("there is no database"))
}

impl<'a> Copying<'a> {
    /// Each database of records with the one that it goes to.
    fn pairs(&self) -> Result<Vec<(&'a Database, &'a Database)>, Failure> {
        let records = self.source.all.iter().filter(|database| database.meaning != Meaning::Content);
        let pair = |source: &'a Database| match self.target.with(source.meaning) {
            Some(target) => Ok((source, target)),
            None => Err(Failure::usage(format!(
                "the source has an {}, but tracker.store.enabled is false in the target's configuration",
                source.name
            ))),
        };
        records.map(pair).collect()
    }

    /// Where content goes from and to; none where it can stay where it is.
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

    /// Makes sure that the target is another database and is empty, or has the first part of this very copy, which `name`
    /// names. From here on nobody else uses it.
    pub(super) async fn begin(
        source: &'a Databases,
        target: &'a Databases,
        name: &[u8],
        force: bool,
        meter: &'a mut Meter,
    ) -> Result<Self, Failure> {
        let reading = |error| failed("the target cannot be read", &error);
        let marking = Marking::read(main_of(target)?).await.map_err(reading)?;
        let mut copying = Self { source, target, marking, mark: Mark::new(name), before: Vec::new(), meter };
        for (source, target) in &copying.pairs()? {
            let same = copy::is_same(&*target.storage, &*source.storage).await;
            if same.map_err(|error| {
                failed(format!("the {} of the target cannot be used", target.name), &error)
            })? {
                return Err(same_database());
            }
        }
        let found = match copying.marking.mark() {
            // Whatever it says, the target is emptied.
            Ok(_) | Err(StorageError::Corrupt { .. }) if force => None,
            Ok(found) => found,
            Err(error @ StorageError::Corrupt { .. }) => {
                let what = "the target cannot be read; begin anew with --force, which empties it first";
                return Err(failed(what, &error));
            }
            Err(error) => return Err(reading(error)),
        };
        match found {
            Some(Mark { v, .. }) if v != VERSION => {
                return Err(Failure::failed(format!(
                    "the target holds a part of a copy by another program, whose mark has version {v}, but this program \
                     reads version {VERSION}; finish it with that program, or begin anew with --force, which empties \
                     the target first"
                )));
            }
            Some(mark) if mark.source == copying.mark.source => copying.mark = mark,
            Some(_) => {
                let text = "the target holds a part of a copy from another source; finish that one, or begin anew \
                            with --force, which empties the target first";
                return Err(Failure::failed(text));
            }
            None => {
                copying.mark.emptying = !copying.is_target_empty().await?;
                if copying.mark.emptying && !force {
                    let text =
                        "the target is not empty; choose another one, or use --force, which empties it first";
                    return Err(Failure::failed(text));
                }
            }
        }
        copying.save().await?;
        copying.meter.resumable = true;
        if copying.mark.emptying {
            copying.empty_target().await?;
        }
        Ok(copying)
    }

    /// Notes in the target how far it is.
    async fn save(&mut self) -> Result<(), Failure> {
        let saved = self.marking.write(&self.mark).await;
        saved.map_err(|error| write_failed("the target cannot be written", &error))
    }

    /// Removes whatever the target held before. Cut off, it is begun again by whoever goes on with the copy.
    async fn empty_target(&mut self) -> Result<(), Failure> {
        self.meter.line("emptying the target");
        let emptying = |error| write_failed("the target cannot be emptied", &error);
        for database in &self.target.all {
            let (storage, spaces) = (&*database.storage, spaces_of(database.place.role));
            copy::empty(storage, &spaces, self.marking_of(storage)).await.map_err(emptying)?;
            storage.sync().await.map_err(emptying)?;
        }
        if let Some((_, to)) = self.stores() {
            let emptying = |error| target_failed("the target cannot be emptied", &error);
            carry::empty(&to).await.map_err(emptying)?;
        }
        self.mark.emptying = false;
        self.save().await
    }

    /// The mark, where this is the database that has it.
    fn marking_of(&self, storage: &dyn Storage) -> Option<&Marking<'a>> {
        main_of(self.target).is_ok_and(|main| std::ptr::addr_eq(main, storage)).then_some(&self.marking)
    }

    async fn is_target_empty(&self) -> Result<bool, Failure> {
        for database in &self.target.all {
            let empty = copy::is_empty(&*database.storage, &spaces_of(database.place.role)).await;
            if !empty.map_err(|error| failed("the target cannot be read", &error))? {
                return Ok(false);
            }
        }
        match self.stores() {
            None => Ok(true),
            Some((_, to)) => {
                carry::is_empty(&to).await.map_err(|error| target_failed("the target cannot be read", &error))
            }
        }
    }

    pub(super) async fn copy(&mut self) -> Result<Copied, Failure> {
        self.before = self.extents().await?;
        let mut total: u64 = self.before.iter().map(|extent| extent.count.bytes).sum();
        if let (Some((from, _)), Some(index)) = (self.stores(), self.source.with(Meaning::Index)) {
            let claimed = carry::claimed(&index.storage, &from).await;
            total += claimed.map_err(|error| content_failed("the source cannot be read", &error))?.bytes;
        }
        self.meter.total = total;
        let content = self.copy_content().await?;
        let records = self.copy_records().await?;
        Ok(Copied { records, content })
    }

    /// What is in each space of the source, but for content.
    async fn extents(&self) -> Result<Vec<Extent>, Failure> {
        let mut extents = Vec::new();
        for (source, _) in self.pairs()? {
            for space in source.spaces() {
                let extent = Extent::of(&*source.storage, *space).await;
                extents.push(extent.map_err(|error| failed("the source cannot be read", &error))?);
            }
        }
        Ok(extents)
    }

    /// Content goes first, so that nothing is claimed that is not there.
    async fn copy_content(&mut self) -> Result<Pieces, Failure> {
        let (Some((from, to)), Some(index)) = (self.stores(), self.source.with(Meaning::Index)) else {
            return Ok(Pieces::default());
        };
        let index = index.storage.clone();
        let failing = |error: LibraryError| content_failed("the content cannot be copied", &error);
        let state =
            carry::state_of(&*index).await.map_err(|error| failed("the source cannot be read", &error))?;
        let target = |error: LibraryError| target_failed("the content cannot be copied", &error);
        let found = stamp::read(&to).await.map_err(target)?;
        let goes_on = |cursor: &Cursor| cursor.of[..] == state && Some(&cursor.stamp[..]) == found.as_deref();
        let cursor = self.mark.content.take().filter(goes_on);
        let stamp = match &cursor {
            Some(cursor) => cursor.stamp.clone(),
            None => {
                // Of what an earlier run left behind nothing is known, and what is removed is not to be counted on.
                self.save().await?;
                carry::empty(&to).await.map_err(target)?;
                ByteBuf::from(stamp::renew(&to).await.map_err(target)?)
            }
        };
        let mut done = cursor
            .as_ref()
            .map_or_else(Pieces::default, |cursor| Pieces { count: cursor.pieces, bytes: cursor.bytes });
        let after = cursor.as_ref().map(|cursor| &cursor.after[..]);
        let mut carry = Carry::new(index, from, to, after).await.map_err(failing)?;
        self.meter.show("content", done.bytes);
        let mut unsynced = 0;
        loop {
            let step = carry.step().await.map_err(failing)?;
            if let Some(step) = step {
                done.count += step.count;
                done.bytes += step.bytes;
                unsynced += step.bytes;
                self.meter.show("content", done.bytes);
            }
            if unsynced >= CHECKPOINT || step.is_none() {
                unsynced = 0;
                let Some(after) = carry.sync().await.map_err(failing)? else { break };
                let Pieces { count: pieces, bytes } = done;
                let (of, stamp, after) = (ByteBuf::from(state), stamp.clone(), ByteBuf::from(after));
                self.mark.content = Some(Cursor { of, stamp, after, pieces, bytes });
                self.save().await?;
            }
            if step.is_none() {
                break;
            }
        }
        self.meter.end_part(done.bytes);
        Ok(done)
    }

    async fn copy_records(&mut self) -> Result<Vec<(&'static str, Space, Count)>, Failure> {
        // Another copy may have begun since, also where nothing is left to write.
        self.save().await?;
        let store = self.target.content();
        let change = change_to(store.as_ref());
        let mut copied = Vec::new();
        for (source, target) in self.pairs()? {
            let failing = |error| write_failed(format!("the {} cannot be copied", source.name), &error);
            let (from, to) = (&*source.storage, &*target.storage);
            let marked = self.marking_of(to).is_some();
            for space in source.spaces() {
                let marking = marked.then_some(&self.marking);
                let copy = Copy { from, to, space: *space, change: &change, marking };
                let meter = &mut *self.meter;
                let count = copy.run(|count| meter.show(source.name, count.bytes)).await.map_err(failing)?;
                meter.end_part(count.bytes);
                copied.push((source.name, *space, count));
            }
            target.storage.sync().await.map_err(failing)?;
        }
        Ok(copied)
    }

    /// Whether the target has what was copied, by number and size, or everything; and whether that is what the source held
    /// all the time.
    pub(super) async fn compare(&mut self, copied: &Copied, verify: bool) -> Result<(), Failure> {
        let compared = self.compare_copied(copied, verify).await;
        if self.extents().await? != self.before {
            return Err(Failure::failed(
                "the source changed while it was copied, so somebody else uses that database; stop every tracker and \
                 peer that does, and start the copy again",
            ));
        }
        compared
    }

    async fn compare_copied(&mut self, copied: &Copied, verify: bool) -> Result<(), Failure> {
        let store = self.target.content();
        let change = change_to(store.as_ref());
        for (source, target) in self.pairs()? {
            let failing = |error| failed(format!("the {} cannot be compared", source.name), &error);
            for space in source.spaces() {
                let from = &*source.storage;
                let to = &*target.storage;
                let copy = Copy { from, to, space: *space, change: &change, marking: None };
                let wrong = if verify {
                    copy.first_difference().await.map_err(failing)?.map(|key| format!("the entry {key:?}"))
                } else {
                    let there = copy::count(to, *space).await.map_err(failing)?;
                    let wanted =
                        copied.records.iter().find(|(name, of, _)| *name == source.name && of == space);
                    let wrong = wanted.is_none_or(|(.., count)| *count != there);
                    wrong.then(|| "every entry".to_owned())
                };
                if let Some(wrong) = wrong {
                    return Err(differs(&format!("{wrong} of {}", space.name())));
                }
            }
        }
        let Some(index) = self.target.with(Meaning::Index).map(|index| index.storage.clone()) else {
            return Ok(());
        };
        let Some((_, to)) = self.stores() else {
            return if verify { self.compare_what_stays(index).await } else { Ok(()) };
        };
        let same = match verify {
            true => self.prove(&index, to, copied.content.bytes).await.map(|found| found == copied.content),
            false => carry::is_held(&index, &to, copied.content).await,
        };
        let compared = match same {
            Ok(true) => return Ok(()),
            Ok(false) => differs("the content"),
            Err(error) => target_failed("the content of the target cannot be compared", &error),
        };
        // Started again it goes on with nothing of this content.
        self.mark.content = None;
        self.save().await?;
        Err(compared)
    }

    /// Makes the target a database like any other.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        let what = "the copy cannot be finished";
        if let Some((_, to)) = self.stores() {
            stamp::remove(&to).await.map_err(|error| target_failed(what, &error))?;
        }
        self.meter.resumable = false;
        self.marking.remove().await.map_err(|error| write_failed(what, &error))
    }

    /// Whether content that is not copied is what the target's index claims.
    async fn compare_what_stays(&mut self, index: Arc<dyn Storage>) -> Result<(), Failure> {
        let (Some(_), Some(store)) = (self.source.content(), self.target.content()) else { return Ok(()) };
        let failing =
            |error: LibraryError| content_failed("the content, which stays where it is, is wrong", &error);
        let claimed = carry::claimed(&index, &store).await.map_err(failing)?;
        self.prove(&index, store, claimed.bytes).await.map_err(failing)?;
        Ok(())
    }

    /// Reads all content of a store and proves it.
    async fn prove(
        &mut self,
        index: &Arc<dyn Storage>,
        store: ContentStore,
        total: u64,
    ) -> Result<Pieces, LibraryError> {
        let mut proof = Carry::proof(Arc::clone(index), store);
        let mut found = Pieces::default();
        (self.meter.before, self.meter.total) = (0, total);
        while let Some(step) = proof.step().await? {
            found.count += step.count;
            found.bytes += step.bytes;
            self.meter.show("comparing the content", found.bytes);
        }
        Ok(found)
    }
}

/// What becomes of records on their way to a node whose content is there.
fn change_to(
    store: Option<&ContentStore>,
) -> impl Fn(Space, &Key, bytes::Bytes) -> Result<bytes::Bytes, StorageError> + Send + Sync {
    move |space, key, value| match store {
        Some(store) => carry::placed(store, space, key, value),
        None => Ok(value),
    }
}

/// Everything that can be in a database of a role, whoever wrote it.
fn spaces_of(role: Role) -> Vec<Space> {
    match role {
        Role::Records => [catalogue::layout::SPACES, library::SPACES].concat(),
        Role::Content => content::SPACES.to_vec(),
    }
}

#[cfg(test)]
mod tests;
