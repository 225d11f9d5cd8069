//! Limits on bandwidth, on the rate of requests and on concurrent work.

pub mod bandwidth;
pub mod gcra;
pub mod per_address;
pub mod turns;
