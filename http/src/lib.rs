//! HTTP for a node of a swarm.
//!
//! The [`gateway`] serves files to HTTP clients and downloads missing content while it sends it. The [`api`] maps requests
//! to commands of the node, and the [`dashboard`] shows them in a browser. [`server`] limits what a client can do, and
//! [`access`] decides who may send requests.

pub mod access;
pub mod api;
pub mod dashboard;
pub mod gateway;
pub mod health;
pub mod metrics;
mod problem;
pub mod server;
mod timed_body;

pub use problem::Problem;
