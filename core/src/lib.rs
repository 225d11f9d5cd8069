//! Values, plug-in traits and domain of Enjambre, a self-hosted peer-to-peer download service.
//!
//! This crate names no database and no socket. Storage and transport come in through two traits,
//! [`storage::Storage`] and [`transport::Transport`]; everything that a file, a provider, a lease or a piece
//! means is written once, here, on top of them. The arrows point one way: applications and plug-ins depend on
//! this crate, it depends on neither.

pub mod admission;
pub mod announcer;
pub mod buffers;
pub mod catalogue;
mod cbor;
mod cell_rate;
pub mod clock;
pub mod download;
pub mod format;
#[cfg(test)]
mod fuzz;
mod given;
mod have_waits;
pub mod library;
pub mod machine;
pub mod model;
mod news;
pub mod offering;
pub mod protocol;
pub mod publish;
pub mod rate;
pub mod readable;
pub mod seeder;
pub mod storage;
pub mod swarm;
pub mod tracker;
pub mod transport;
