//! The conformance test suite for [`Transport`](enjambre_core::transport::Transport), and wrappers for tests: one with
//! faults, and one that observes or changes calls.
//!
//! A plug-in passes an expression that creates a fresh [`Subject`] to
//! [`transport_conformance!`](crate::transport_conformance), which defines one test for each case. The cases do not depend on
//! the speed of the machine: they wait for events, at most [`TIMEOUT`]. A case can also be called directly:
//!
//! ```
//! use enjambre_core::transport::MessageLimits;
//! use enjambre_core::transport::memory::MemoryNetwork;
//! use enjambre_testkit::transport::{self, Subject};
//!
//! fn subject() -> Subject {
//!     Subject {
//!         transport: MemoryNetwork::new().transport(),
//!         endpoint: "memory://node:0".parse().expect("a valid endpoint"),
//!         limits: MessageLimits::default(),
//!         guard: Box::new(()),
//!     }
//! }
//!
//! // In a test of the plug-in: one test for each case.
//! mod conformance {
//!     enjambre_testkit::transport_conformance!(super::subject());
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! transport::replies_in_any_order_match_their_calls(subject()).await;
//! # }
//! ```

mod calls;
pub mod fault;
pub mod intercept;
mod lifecycle;
mod limits;
mod probe;
mod subject;

pub use calls::*;
pub use lifecycle::*;
pub use limits::*;
pub use probe::TIMEOUT;
pub use subject::Subject;

/// Defines a test for each case of the suite. Takes an expression that creates a fresh
/// [`Subject`](crate::transport::Subject). The calling crate needs tokio with the features `macros` and
/// `rt-multi-thread`.
#[macro_export]
macro_rules! transport_conformance {
    ($build:expr) => {
        $crate::transport_conformance! { @each $build;
            concurrent_calls_get_their_own_replies
            replies_in_any_order_match_their_calls
            requests_arrive_in_order
            messages_up_to_the_limits_arrive_unchanged
            total_deadline_ends_only_its_call
            silence_deadline_counts_from_the_last_byte
            abandoned_call_leaves_the_connection_open
            request_ids_are_unique
            connection_ids_identify_connections
            restarted_listener_is_reconnected
            missing_listener_is_unreachable_promptly
            shutdown_ends_accept_and_outstanding_calls
            dropped_listener_is_shut_down
            reply_queued_before_shutdown_arrives
            closed_connection_fails_its_calls
            reply_to_a_disconnected_remote_is_refused
            handle_closes_its_connection
            closed_connection_releases_its_reply_budget
            handle_reports_the_end_of_its_connection
            invalid_endpoints_are_refused
            endpoint_in_use_is_refused
            oversized_header_is_not_sent
            oversized_reply_is_replaced_by_an_error
            calls_beyond_the_limit_wait
            dropped_request_frees_its_slot
            unread_replies_leave_budget_for_other_connections
            replies_that_fill_the_budget_are_sent
            malformed_header_does_not_reach_the_service
            unsupported_version_is_answered_by_the_transport
        }
    };
    (@each $build:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::transport::$case($build).await;
            }
        )*
    };
}
