//! The conformance kit: checks that a backend keeps the obligations of [`Storage`].
//!
//! A backend's test implements [`Builder`] and calls [`run_all`]; each case can be run by its name as well. A
//! failure names the obligation that is broken and the operations that led there.
//!
//! ```no_run
//! use std::sync::Arc;
//! use enjambre_core::storage::Storage;
//! use enjambre_core::storage::conformance::{Builder, run_all};
//! use enjambre_core::storage::error::StorageError;
//! use enjambre_core::storage::memory::Disk;
//!
//! struct Memory;
//!
//! impl Builder for Memory {
//!     type Place = Disk;
//!     fn place(&self) -> Disk {
//!         Disk::new()
//!     }
//!     async fn open(&self, place: &Disk) -> Result<Arc<dyn Storage>, StorageError> {
//!         Ok(Arc::new(place.open()))
//!     }
//! }
//!
//! # async fn test() {
//! run_all(&Memory).await;
//! # }
//! ```

mod bench;
mod commits;
pub mod crash;
mod lifetime;
pub mod load;
mod model;
mod records;
mod scans;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Storage;
use super::error::StorageError;
use bench::{Bench, Broken};

/// How long a case may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes storages for the kit.
pub trait Builder: Sync {
    /// Where the data of one storage lies, for example a temporary folder. Dropping it removes the data.
    type Place: Send + Sync;

    /// A place without data.
    fn place(&self) -> Self::Place;

    /// Opens the storage at a place, where the data of an earlier opening may lie.
    fn open(
        &self,
        place: &Self::Place,
    ) -> impl Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send;
}

/// A case that failed.
#[derive(Debug)]
pub struct Failure {
    /// The name of the case.
    pub case: &'static str,
    /// The obligation that is broken, and what was seen instead.
    pub broken: String,
    /// The last operations before, oldest first.
    pub operations: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  after:", self.case, self.broken)?;
        self.operations.iter().try_for_each(|operation| write!(f, "\n    {operation}"))
    }
}

macro_rules! cases {
    ($($module:ident::$case:ident),* $(,)?) => {
        /// The names of all cases.
        pub const CASES: &[&str] = &[$(stringify!($case)),*];

        /// Runs one case on a storage of its own.
        ///
        /// # Panics
        /// If there is no case of this name.
        pub async fn run<B: Builder>(builder: &B, case: &str) -> Result<(), Failure> {
            match case {
                $(stringify!($case) => {
                    guard(builder, stringify!($case), async |bench| $module::$case(bench).await).await
                })*
                _ => panic!("there is no case {case:?}; the cases are {CASES:?}"),
            }
        }
    };
}

cases! {
    records::limits_are_wide_enough,
    records::absent_keys_have_no_value,
    records::values_come_in_the_order_asked_for,
    records::keys_of_any_bytes_and_length_are_kept,
    records::values_up_to_the_limit_are_kept,
    records::what_exceeds_a_limit_is_refused_whole,
    records::spaces_are_apart,
    scans::keys_are_ordered_by_unsigned_bytes,
    scans::pages_are_cut_by_entries,
    scans::pages_are_cut_by_bytes,
    scans::ranges_hold_what_their_bounds_say,
    scans::inverted_ranges_are_empty,
    commits::an_empty_batch_is_applied,
    commits::conditions_decide,
    commits::a_refused_batch_changes_nothing_in_any_space,
    commits::conditions_see_the_state_before_the_batch,
    commits::the_last_write_to_a_key_counts,
    commits::one_of_many_writers_wins,
    commits::no_update_is_lost,
    commits::a_conflict_fails_alone,
    commits::a_read_sees_what_was_acknowledged,
    commits::a_page_is_consistent,
    lifetime::what_was_committed_is_there_after_a_reopen,
    lifetime::a_drop_without_close_loses_nothing,
    lifetime::a_dropped_commit_is_whole_or_nothing,
    lifetime::a_closed_storage_says_so,
    lifetime::a_close_leaves_nobody_waiting,
    model::random_operations_give_what_the_reference_gives,
}

/// Runs every case.
///
/// # Panics
/// If a case fails; the message holds all failures.
pub async fn run_all<B: Builder>(builder: &B) {
    let mut failures = Vec::new();
    for case in CASES {
        if let Err(failure) = run(builder, case).await {
            failures.push(failure.to_string());
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} obligations are broken:\n{}",
        failures.len(),
        CASES.len(),
        failures.join("\n")
    );
}

async fn guard<B: Builder>(
    builder: &B,
    case: &'static str,
    body: impl AsyncFnOnce(&mut Bench<'_, B>) -> Result<(), Broken>,
) -> Result<(), Failure> {
    let place = builder.place();
    let mut bench = match Bench::new(builder, place).await {
        Ok(bench) => bench,
        Err(Broken(broken)) => return Err(Failure { case, broken, operations: Vec::new() }),
    };
    let outcome = tokio::time::timeout(PATIENCE, body(&mut bench)).await;
    let outcome = outcome.unwrap_or_else(|_| Err(Broken(format!("no call hangs, but it took {PATIENCE:?}"))));
    let failure = |Broken(broken)| Failure { case, broken, operations: bench.operations() };
    outcome.map_err(failure)?;
    bench.finish().await.map_err(failure)
}
