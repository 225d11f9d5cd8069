//! HTTP for a node of a swarm.
//!
//! The [`gateway`] serves files to HTTP clients and downloads missing content while it sends it. [`server`] limits what a
//! client can do, and [`access`] decides who may send requests.

pub mod access;
pub mod gateway;
pub mod health;
mod problem;
pub mod server;

pub use problem::Problem;
