//! The sled backend as a plug-in: conformance, kills, and opening of damaged and foreign databases.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod conformance;
mod crash;
mod opening;
