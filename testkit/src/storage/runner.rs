//! Runs a case with timeouts and reports panics and blocked threads.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::bench::{Bench, Operations, Violation};
use super::builder::Builder;
use super::case::{Case, Failure, Outcome};
use super::watchdog::Watchdog;

/// The time after which a case counts as a hang.
pub(super) const CASE_TIMEOUT: Duration = Duration::from_secs(120);
/// The time after which the runtime counts as blocked.
pub(super) const BLOCKED_TIMEOUT: Duration = Duration::from_secs(60);
/// The timeout for closing the storage of a failed case.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a case with a new storage. A hang or a panic is a failure. A blocking call is reported with [`Builder::blocked`].
pub(super) async fn guard<B: Builder>(
    builder: &B,
    case: &'static Case,
    blocked_timeout: Duration,
    body: impl AsyncFnOnce(&mut Bench<'_, B>) -> Result<(), Violation>,
) -> Outcome {
    let began = Instant::now();
    let operations = Operations::default();
    let with_operations = |violation| (violation, operations.last());
    let watchdog = {
        let operations = operations.clone();
        Watchdog::start(blocked_timeout, move || {
            let violation = format!(
                "a call blocks the polling thread: no progress for {blocked_timeout:?}; see the operations without a \
                 result"
            );
            B::blocked(&Failure { case, violation, operations: operations.last() })
        })
    };
    let work = async {
        let mut bench = Bench::new(builder, operations.clone()).await.map_err(with_operations)?;
        let outcome = match AssertUnwindSafe(body(&mut bench)).catch_unwind().await {
            Ok(outcome) => outcome,
            Err(panic) => Err(Violation::by_panic(&*panic)),
        };
        match outcome {
            Ok(()) => bench.finish().await.map_err(with_operations),
            Err(violation) => {
                let failed = with_operations(violation);
                // Closed even if this fails, so that the place can be removed.
                let close = AssertUnwindSafe(bench.finish()).catch_unwind();
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
                Err(failed)
            }
        }
    };
    let work = watchdog.watch(AssertUnwindSafe(work).catch_unwind());
    let outcome = match tokio::time::timeout(CASE_TIMEOUT, work).await {
        Ok(outcome) => outcome.unwrap_or_else(|panic| Err(with_operations(Violation::by_panic(&*panic)))),
        Err(_) => Err(with_operations(Violation(format!(
            "a call hangs: the case did not finish within {CASE_TIMEOUT:?}"
        )))),
    };
    let result =
        outcome.map_err(|(Violation(violation), operations)| Failure { case, violation, operations });
    Outcome { case, operations: operations.count(), took: began.elapsed(), result }
}
