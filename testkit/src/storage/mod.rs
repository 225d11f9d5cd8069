//! The conformance test suite for implementations of [`Storage`](enjambre_core::Storage).
//!
//! The test of a backend implements [`Builder`] and calls [`run_all`]. [`case`] and [`run`] run a single case. A failure states
//! the violated requirement, the observed behaviour and the preceding operations. The suite uses the methods of
//! `Storage` only. [`crash`] adds tests that kill processes; power failures are not simulated. `enjambre storage check`
//! runs the same cases with a configured backend.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use enjambre_core::storage::memory::Disk;
//! use enjambre_core::{Storage, StorageError};
//! use enjambre_testkit::storage::{Builder, run_all};
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
mod builder;
mod case;
mod commits;
pub mod crash;
pub mod fake;
pub mod fake_server;
pub mod fault;
mod large;
mod lifetime;
pub mod load;
mod model;
mod records;
mod runner;
mod scans;
#[cfg(test)]
mod tests;
mod watchdog;

use bench::{Bench, Violation};
pub use builder::Builder;
pub use case::{Case, Failure, Group, Outcome};
use runner::{BLOCKED_TIMEOUT, guard};

/// The version of the suite. After the first release it is incremented when a backend that passed may fail.
pub const KIT_VERSION: u32 = 1;

macro_rules! cases {
    ($($group:ident { $($module:ident::$case:ident: $requirement:literal,)* })*) => {
        /// All cases except those of [`crash`].
        pub const CASES: &[Case] = &[$($(
            Case { name: stringify!($case), group: Group::$group, requirement: $requirement },
        )*)*];

        async fn body<B: Builder>(case: &Case, bench: &mut Bench<'_, B>) -> Result<(), Violation> {
            match case.name {
                $($(stringify!($case) => $module::$case(bench).await,)*)*
                name => Err(Violation(format!("unknown case {name}"))),
            }
        }
    };
}

cases! {
    Core {
        records::get_of_absent_key_returns_none:
            "A key that was never written or was deleted has no value and is in no scan.",
        records::get_returns_values_in_requested_order:
            "A get returns one value for each requested key, in order, including repeated keys.",
        records::spaces_are_independent:
            "Equal keys in two spaces are independent entries, whatever the names of the spaces.",
        scans::scan_returns_keys_in_unsigned_byte_order:
            "A scan returns keys in ascending order of their unsigned bytes; a prefix precedes longer keys.",
        scans::scan_limits_entries_per_page:
            "A page contains at most the requested number of entries, and all pages contain every key once.",
        scans::scan_respects_range_bounds:
            "A scan returns exactly the keys within its included, excluded or unbounded bounds.",
        scans::scan_of_inverted_range_is_empty:
            "A scan of a range whose end is not after its start returns no entries and no error.",
        commits::empty_batch_checks_its_conditions:
            "A batch without writes succeeds if its conditions hold.",
        commits::batch_is_applied_only_if_conditions_hold:
            "A batch is applied if all its conditions hold and fails with Conflict otherwise; an empty value is a value.",
        commits::batch_is_atomic_across_spaces:
            "A refused batch changes nothing, and an applied batch changes all of its spaces.",
        commits::condition_compares_every_byte:
            "A condition compares whole values, also of 32 KiB.",
        commits::conditions_see_state_before_batch:
            "The conditions of a batch do not observe its own writes.",
        large::large_batch_is_atomic:
            "A batch of 20,000 writes, or of the most that is allowed, is applied and observed atomically.",
        commits::last_write_to_key_wins:
            "If a batch writes a key several times, the last write wins.",
        model::random_operations_match_memory_storage:
            "Random operations, closes and drops have the same results as with the in-memory storage.",
    }
    Concurrency {
        commits::one_of_concurrent_conditional_writers_wins:
            "Of concurrent batches that require the same key to be absent, exactly one is applied.",
        commits::concurrent_updates_are_not_lost:
            "Conditions are checked and writes applied as one step, so that no update is lost.",
        commits::conflict_does_not_fail_other_batches:
            "A refused batch does not affect batches that are committed concurrently.",
        commits::read_sees_acknowledged_commits:
            "A get or scan that starts after a commit returned observes its writes.",
        commits::scan_page_is_a_snapshot:
            "A page of a scan observes each batch completely or not at all.",
        commits::batch_is_observed_in_all_spaces_at_once:
            "A reader that observes a batch in one space observes it in all others afterwards.",
        lifetime::dropped_commit_is_atomic:
            "A commit whose future is dropped is applied completely or not at all, and the storage remains usable.",
        lifetime::close_completes_calls_in_progress:
            "During a close all calls in progress return or fail with Closed, and acknowledged commits are kept.",
    }
    Reopen {
        lifetime::committed_data_survives_reopen:
            "After a close and a reopen the storage contains exactly the committed data, including Buffered commits.",
        lifetime::committed_data_survives_drop_without_close:
            "A storage that is dropped without a close loses no acknowledged commit.",
        lifetime::second_opening_is_refused:
            "While a storage is open, a second opening fails with Locked, unless several nodes may share the storage.",
        lifetime::close_releases_lock:
            "After a close returned, the storage can be opened at once, also after many reads.",
        lifetime::closed_storage_returns_closed:
            "After a close every call fails with Closed and changes nothing, and a second close succeeds.",
    }
    Limits {
        records::limits_meet_minimum:
            "The limits are at least 32 KiB per value, 8 MiB per batch and 64 KiB per page, and do not change.",
        records::keys_of_any_bytes_and_length_round_trip:
            "Keys may contain 1 to 1024 arbitrary bytes.",
        records::values_up_to_limit_round_trip:
            "Values of 0 to max_value bytes are stored unchanged.",
        large::get_of_many_large_values_is_complete:
            "A get of many values with a total size of 4 MiB returns all values.",
        records::oversized_batch_is_refused:
            "A batch that exceeds a limit fails with TooLarge and changes nothing, and one within the limits is applied.",
        scans::scan_limits_bytes_per_page:
            "A page exceeds max_page_bytes by at most one entry and contains at least one entry.",
    }
}

/// Returns the case with this name, including those of [`crash`].
pub fn case(name: &str) -> Option<&'static Case> {
    CASES.iter().chain(crash::CASES).find(|case| case.name == name)
}

/// Runs one of [`CASES`] with a new storage.
pub async fn run<B: Builder>(builder: &B, case: &'static Case) -> Outcome {
    guard(builder, case, BLOCKED_TIMEOUT, async |bench| body(case, bench).await).await
}

/// Runs all of [`CASES`].
///
/// # Panics
/// If a case fails. The message contains all failures.
pub async fn run_all<B: Builder>(builder: &B) {
    let mut outcomes = Vec::new();
    for case in CASES {
        outcomes.push(run(builder, case).await);
    }
    case::expect_all(&outcomes);
}
