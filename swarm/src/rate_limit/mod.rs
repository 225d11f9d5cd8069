//! Limits on bandwidth and on the rate of requests.

pub mod bandwidth;
pub mod gcra;
pub mod per_address;
